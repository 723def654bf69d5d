"""Converting values to fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import FieldError
from kvmsr.msr import catalog, decode, differences, find_cpu

WITH_FIELDS = [msr for msr in catalog() if msr.fields]


def field(name, value, of, others=None):
    (found,) = (
        one for one in decode(catalog().lookup(name), value, others) if one.field.name == of
    )
    return found


@given(st.sampled_from(WITH_FIELDS), st.integers(0, 2**64 - 1))
def test_fields_reserved_and_unknown_bits_are_the_whole_value(msr, value):
    decoded = decode(msr, value)
    parts = sum(one.number << one.field.shift for one in decoded)
    assert parts | decoded.reserved | decoded.unknown == value
    assert parts + decoded.reserved + decoded.unknown == value
    assert repr(decoded).startswith(f"<{msr.name} = {value:#x}")


def test_a_flag_that_is_0_never_says_what_1_would_mean():
    capabilities = catalog().lookup("IA32_ARCH_CAPABILITIES")
    assert {one.said for one in decode(capabilities, 0)} == {""}
    said = {one.field.name: one.said for one in decode(capabilities, 1 << 27)}
    assert said["rfds_no"] == "no register file data sampling"
    assert said["gds_no"] == ""


def test_words_stand_for_numbers():
    decoded = decode(catalog().lookup("IA32_MTRR_DEF_TYPE"), 0x806)
    assert decoded["type"] == 6
    assert repr(decoded) == "<IA32_MTRR_DEF_TYPE = 0x806: type=WB, enable>"
    with pytest.raises(KeyError):
        decoded["colour"]


def test_reserved_bits_show():
    decoded = decode(catalog().lookup("IA32_FEATURE_CONTROL"), 0x800005)
    assert decoded.reserved == 0x800000
    assert "reserved=0x800000" in repr(decoded)


@pytest.mark.parametrize(
    ("name", "value", "of", "shown", "said"),
    [
        ("IA32_APIC_BASE", 0xFEE00900, "base", "0xfee00000", "physical address of its page"),
        ("IA32_LSTAR", 0xFFFFFFFF81000000, "rip", "0xffffffff81000000", "entry point"),
        ("IA32_LSTAR", 0x00FF_8000_0000_0000, "rip", "0xff800000000000",
         "canonical only with 5-level paging (entry point)"),
        ("IA32_LSTAR", 1 << 63, "rip", "0x8000000000000000", "not canonical (entry point)"),
        ("IA32_MTRR_PHYSMASK0", 0x7F80000800, "mask", "0x7f80000000",
         "size 2 GiB (address bits that must match)"),
        ("IA32_MTRR_PHYSMASK0", 0x5F80000800, "mask", "0x5f80000000",
         "not one range: the mask has gaps (address bits that must match)"),
    ],
)  # fmt: skip
def test_addresses_are_whole(name, value, of, shown, said):
    found = field(name, value, of)
    assert (found.shown, found.said) == (shown, said)
    assert found.as_dict()["address"] == shown


@pytest.mark.parametrize(
    ("name", "value", "of", "meaning", "quantity"),
    [
        ("IA32_PERF_STATUS", 0x2A00, "ratio", "4200 MHz", (4200, "MHz")),
        ("IA32_PERF_STATUS", 0x2710 << 32, "voltage", "1.2207 V", (1.220703125, "V")),
        ("MSR_TURBO_RATIO_LIMIT", 0x2D2F3031, "cores4", "4500 MHz", (4500, "MHz")),
        ("MSR_RAPL_POWER_UNIT", 0xA0E03, "energy", "61.04 µJ", (2**-14, "J")),
        ("MSR_PKG_POWER_LIMIT", 0x6E0208, "power1", "65 W", (65, "W")),
        ("MSR_PKG_POWER_LIMIT", 0xDC0208, "window1", "28 s", (28, "s")),
        ("MSR_PKG_ENERGY_STATUS", 0x8000, "energy", "2 J", (2, "J")),
        ("MSR_AMD_PKG_ENERGY_STATUS", 0x8000, "energy", "500 mJ", (0.5, "J")),
        ("IA32_THERM_STATUS", 0x88250000, "readout", "37 °C below TjMax", (37, "°C below TjMax")),
        ("MSR_TEMPERATURE_TARGET", 0x640000, "target", "100 °C", (100, "°C")),
        ("MSR_PKGC6_IRTL", 0x8884, "limit", "135.2 µs", (132 * 1024e-9, "s")),
        ("HV_X64_MSR_TSC_FREQUENCY", 2_400_000_000, "frequency", "2.4 GHz", (2.4e9, "Hz")),
        ("IA32_HWP_REQUEST", 0x10A << 32, "window", "1 ms", (1e-3, "s")),
    ],
)
def test_units_are_computed(name, value, of, meaning, quantity):
    found = field(name, value, of)
    number, unit = quantity
    assert found.meaning == meaning
    assert found.quantity == (pytest.approx(number), unit)
    assert found.as_dict()["computed"] == {"value": pytest.approx(number), "unit": unit}


def test_units_are_those_of_the_machine_if_they_are_given():
    limit = catalog().lookup("MSR_PKG_POWER_LIMIT")
    assert decode(limit, 0x208).assumed == {"MSR_RAPL_POWER_UNIT": 0xA0E03}
    given = decode(limit, 0x208, {"MSR_RAPL_POWER_UNIT": 0xA0E05})
    assert given.assumed == {}
    assert given.fields[0].meaning == "16.25 W"


@pytest.mark.parametrize(
    ("cpu", "meaning"),
    [("skylake", "1.99994 J"), ("skylake-sp", "501.34 mJ"), ("sapphire-rapids", "1.99994 J")],
)
def test_servers_count_the_energy_of_memory_in_units_of_their_own(cpu, meaning):
    msr = catalog().get(0x619, find_cpu(cpu))
    assert decode(msr, 0x7FFF).fields[0].meaning == meaning


def test_a_temperature_is_in_degrees_if_the_limit_is_given():
    found = field("IA32_THERM_STATUS", 0x88250000, "readout", {"MSR_TEMPERATURE_TARGET": 0x640000})
    assert found.said == "63 °C, 37 below TjMax (digital readout)"


@pytest.mark.parametrize(
    ("name", "value", "summary"),
    [
        ("IA32_APIC_BASE", 0xFEE00900, "xAPIC mode: memory at 0xfee00000, bootstrap processor"),
        ("IA32_APIC_BASE", 0xFEE00C00, "x2APIC mode: MSRs 0x800 to 0x8ff"),
        ("IA32_APIC_BASE", 0xFEE00000, "the APIC is off"),
        ("IA32_EFER", 0xD01, "long mode is active"),
        ("IA32_EFER", 0x901, "long mode is enabled, not active: paging is off"),
        ("IA32_EFER", 0, "legacy mode"),
        ("IA32_STAR", 0x23001000000000, "SYSCALL: CS 0x10, SS 0x18;"
         " SYSRET: CS 0x33 (64 bits) or 0x23 (32 bits), SS 0x2b"),
        ("IA32_SYSENTER_CS", 0x10,
         "SYSENTER: CS 0x10, SS 0x18; SYSEXIT: CS 0x33 (64 bits) or 0x23 (32 bits)"),
        ("IA32_PAT", 0x0407050600070106, "WB WC UC- UC WB WP UC- WT (as Linux sets it)"),
        ("IA32_MC4_STATUS", 0, "no error"),
        ("IA32_MC4_STATUS", 0x8C00004000010091,
         "corrected error: memory controller, read, channel 1"),
        ("IA32_MC0_STATUS", 0xBE00000000800400, "uncorrected error:"
         " internal timer expired, the processor's context is corrupt"),
        ("IA32_PERFEVTSEL0", 0x5300C0, "counts instructions retired"),
        ("IA32_PERFEVTSEL0", 0x13003C, "off (core cycles)"),
        ("IA32_PERFEVTSEL0", 0x4101D1, "counts event 0xd1, unit mask 0x1 above CPL 0"),
    ],
)  # fmt: skip
def test_what_several_fields_say_together_is_said_first(name, value, summary):
    assert decode(catalog().lookup(name), value).summary == summary


def test_the_range_of_an_mtrr_needs_its_mask():
    base = catalog().lookup("IA32_MTRR_PHYSBASE1")
    assert decode(base, 0x80000000).summary == (
        "UC from 0x80000000; IA32_MTRR_PHYSMASK1 has the size"
    )
    decoded = decode(base, 0x80000000, {"IA32_MTRR_PHYSMASK1": 0x3F80000800})
    assert decoded.summary == "UC from 0x80000000 to 0xffffffff (2 GiB)"


def test_two_values_differ_in_some_fields():
    msr = catalog().lookup("IA32_MTRR_DEF_TYPE")
    ((before, after),) = differences(decode(msr, 0x806), decode(msr, 0x800))
    assert (before.brief, after.brief) == ("type=WB", "type=UC")
    assert differences(decode(msr, 0x806), decode(msr, 0x806)) == []


def test_a_value_has_64_bits():
    with pytest.raises(FieldError, match="does not fit"):
        decode(catalog()[0x10], 1 << 64)
