"""Converting fields to values, from numbers and from what people write."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import FieldError
from kvmsr.msr import catalog, decode, encode, encode_with_notes

WITH_FIELDS = [msr for msr in catalog() if msr.fields]
OTHERS = ({}, {"MSR_TEMPERATURE_TARGET": 0x640000, "MSR_RAPL_POWER_UNIT": 0xA1003})


@given(st.sampled_from(WITH_FIELDS), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_encoding_what_was_decoded_gives_it_back(msr, value, start):
    decoded = decode(msr, value)
    described = sum(field.mask for field in msr.fields)
    made = encode(msr, {one.field.name: one.number for one in decoded}, start)
    assert made == value & described | start & ~described


def values(msr):
    """Return values of an MSR: none and all of the bits, and some others."""
    some = random.Random(msr.name)
    return [0, 2**64 - 1, *(some.getrandbits(64) for _ in range(4))]


@pytest.mark.parametrize("others", OTHERS, ids=["alone", "with others"])
def test_what_decode_shows_is_what_encode_takes(others):
    for msr in WITH_FIELDS:
        for value in values(msr):
            for one in decode(msr, value, others):
                texts = {one.shown}
                if one.number in one.field.values or not one.field.is_flag:
                    texts |= {one.meaning} - {""}
                for text in texts:
                    told = f"{msr.name}.{one.field.name}={text}"
                    assert encode(msr, {one.field.name: text}, value, others) == value, told


def test_words_stand_for_numbers():
    msr = catalog().lookup("IA32_MTRR_DEF_TYPE")
    assert encode(msr, {"type": "wb", "enable": "1"}) == 0x806


@pytest.mark.parametrize("yes", ["true", "yes", "on", "1", "True", "0x1"])
@pytest.mark.parametrize("no", ["false", "no", "off", "0"])
def test_flags_are_true_or_false(yes, no):
    msr = catalog().lookup("IA32_FEATURE_CONTROL")
    assert encode(msr, {"Lock": yes, "VMX": yes}) == 5
    assert encode(msr, {"lock": no}, 5) == 4


@pytest.mark.parametrize(
    ("name", "fields", "value"),
    [
        ("IA32_APIC_BASE", {"base": "0xfee00000", "enable": "true"}, 0xFEE00800),
        ("IA32_APIC_BASE", {"base": 0xFEE00000, "enable": 1}, 0xFEE00800),
        ("IA32_LSTAR", {"rip": "0xffffffff81000000"}, 0xFFFFFFFF81000000),
        ("IA32_MTRR_PHYSMASK0", {"mask": "2GiB", "valid": "1"}, 0x000FFFFF80000800),
        ("MSR_PKG_POWER_LIMIT", {"power1": "15W", "window1": "28 s"}, 0xDC0078),
        ("MSR_PKG_POWER_LIMIT", {"power1": "15000mW"}, 0x78),
        ("MSR_TEMPERATURE_TARGET", {"target": "85C"}, 0x550000),
        ("MSR_TEMPERATURE_TARGET", {"target": "85 °C"}, 0x550000),
        ("IA32_THERM_INTERRUPT", {"threshold1": "15 °C below TjMax"}, 0xF00),
        ("IA32_PERF_CTL", {"ratio": "3.2GHz"}, 0x2000),
        ("IA32_PERF_CTL", {"ratio": "3200 mhz"}, 0x2000),
        ("IA32_PERF_CTL", {"ratio": "32"}, 0x2000),
        ("IA32_CLOCK_MODULATION", {"duty": "50%"}, 8),
        ("MSR_RAPL_POWER_UNIT", {"power": "0.125W"}, 3),
        ("HV_X64_MSR_TSC_FREQUENCY", {"frequency": "2.4GHz"}, 2_400_000_000),
    ],
)
def test_quantities_and_addresses_are_taken_as_people_write_them(name, fields, value):
    encoded = encode_with_notes(catalog().lookup(name), fields)
    assert encoded.value == value
    assert not any("nearest" in note for note in encoded.notes)


def test_a_temperature_needs_the_limit():
    msr = catalog().lookup("IA32_THERM_INTERRUPT")
    limit = {"MSR_TEMPERATURE_TARGET": 0x640000}
    assert encode(msr, {"threshold1": "85C"}, others=limit) == 0xF00
    with pytest.raises(FieldError, match="give --with MSR_TEMPERATURE_TARGET=VALUE"):
        encode(msr, {"threshold1": "85C"})


def test_rounding_is_said_once():
    encoded = encode_with_notes(catalog().lookup("MSR_PKG_POWER_LIMIT"), {"power1": "15.2W"})
    assert encoded.value == 0x7A
    assert encoded.notes == (
        "MSR_PKG_POWER_LIMIT.power1 is 15.25 W, the nearest to 15.2W",
        "assumed: MSR_RAPL_POWER_UNIT = 0xa0e03",
    )


def test_an_address_that_is_not_canonical_is_doubted():
    encoded = encode_with_notes(catalog().lookup("IA32_LSTAR"), {"rip": "0x8000000000000000"})
    assert encoded.notes == ("IA32_LSTAR.rip is not canonical",)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("IA32_PAT", {"colour": 1}, "IA32_PAT has no field 'colour'; it has pa0, pa1"),
        ("IA32_PAT", {"pa0": 8}, "IA32_PAT.pa0 is 0x8: it takes 0 to 0x7"),
        ("IA32_PAT", {"pa0": "XX"}, "IA32_PAT.pa0 cannot be 'XX': a number, or one of UC, WC"),
        ("IA32_APIC_BASE", {"base": "0xfee00010"},
         "IA32_APIC_BASE.base is an address in units of 4 KiB: 0xfee00010 has lower bits"),
        ("IA32_APIC_BASE", {"base": 0xFEE00},
         "IA32_APIC_BASE.base is an address in units of 4 KiB: 0xfee00 has lower bits"),
        ("IA32_APIC_BASE", {"base": str(1 << 60)},
         "IA32_APIC_BASE.base is an address of 52 bits: 0x1000000000000000 has more"),
        ("IA32_APIC_BASE", {"base": "-4096"}, "IA32_APIC_BASE.base is an address of 52 bits"),
        ("IA32_APIC_BASE", {"base": "here"},
         "IA32_APIC_BASE.base cannot be 'here': an address, 0xfee00000"),
        ("IA32_APIC_BASE", {"enable": "maybe"},
         "IA32_APIC_BASE.enable cannot be 'maybe': true or false"),
        ("IA32_MTRR_PHYSMASK0", {"mask": "3GiB"}, "IA32_MTRR_PHYSMASK0.mask cannot be for 3GiB"),
        ("IA32_PERF_CTL", {"ratio": "99GHz"},
         "IA32_PERF_CTL.ratio cannot be 99GHz: it goes from 0 MHz to 25500 MHz"),
        ("IA32_PERF_CTL", {"ratio": "5W"},
         "IA32_PERF_CTL.ratio cannot be '5W': a number, or a value in MHz"),
        ("MSR_PKG_POWER_LIMIT", {"power1": "-1W"}, "MSR_PKG_POWER_LIMIT.power1 cannot be -1W"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_reported(name, fields, message):
    with pytest.raises(FieldError) as raised:
        encode(catalog().lookup(name), fields)
    assert str(raised.value).startswith(message)
