"""Converting values to fields, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import FieldError
from kvmsr.msr import catalog, decode, encode

WITH_FIELDS = [msr for msr in catalog() if msr.fields]


@given(st.sampled_from(WITH_FIELDS), st.integers(0, 2**64 - 1))
def test_fields_reserved_and_unknown_bits_are_the_whole_value(msr, value):
    decoded = decode(msr, value)
    parts = sum(number << field.low for field, number, _ in decoded)
    assert parts | decoded.reserved | decoded.unknown == value
    assert parts + decoded.reserved + decoded.unknown == value
    assert repr(decoded).startswith(f"<{msr.name} = {value:#x}")


@given(st.data(), st.sampled_from(WITH_FIELDS), st.integers(0, 2**64 - 1))
def test_encoding_what_was_decoded_gives_it_back(data, msr, start):
    wanted = {
        field.name: data.draw(st.integers(0, field.mask >> field.low)) for field in msr.fields
    }
    value = encode(msr, wanted, start)
    assert {field.name: number for field, number, _ in decode(msr, value)} == wanted
    described = sum(field.mask for field in msr.fields)
    assert value & ~described == start & ~described


def test_words_stand_for_numbers():
    msr = catalog().lookup("IA32_MTRR_DEF_TYPE")
    assert encode(msr, {"type": "wb", "enable": "1"}) == 0x806
    decoded = decode(msr, 0x806)
    assert decoded["type"] == 6
    assert repr(decoded) == "<IA32_MTRR_DEF_TYPE = 0x806: type=6 (WB), enable=1>"
    with pytest.raises(KeyError):
        decoded["colour"]


def test_reserved_bits_show():
    decoded = decode(catalog().lookup("IA32_FEATURE_CONTROL"), 0x800005)
    assert decoded.reserved == 0x800000
    assert "reserved=0x800000" in repr(decoded)


def test_units_are_converted():
    (ratio, *_) = decode(catalog().lookup("IA32_PERF_STATUS"), 0x2A00)
    assert ratio.meaning == "4200 MHz"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": 1}, "IA32_PAT has no field 'colour'; it has pa0, pa1"),
        ({"pa0": 8}, "IA32_PAT.pa0 is 0x8: it takes 0 to 0x7"),
        ({"pa0": "XX"}, "IA32_PAT.pa0 cannot be 'XX': a number, or one of UC, WC"),
    ],
)
def test_what_does_not_fit_is_reported(fields, message):
    with pytest.raises(FieldError) as raised:
        encode(catalog().lookup("IA32_PAT"), fields)
    assert str(raised.value).startswith(message)


def test_a_value_has_64_bits():
    with pytest.raises(FieldError, match="does not fit"):
        decode(catalog()[0x10], 1 << 64)
