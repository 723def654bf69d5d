"""What reads and writes do to bits: against a reference that looks at one bit at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import PolicyError
from kvmsr.policy.bits import BitKind, Bits, parse_span

WIDTH = 64
values = st.integers(0, (1 << WIDTH) - 1)
# Few kinds at once, so that registers without a lock or a reserved bit are frequent.
kinds = st.lists(st.sampled_from(list(BitKind)), min_size=1, max_size=4).flatmap(
    lambda some: st.lists(st.sampled_from(some), min_size=WIDTH, max_size=WIDTH)
)


class Reference:
    """A register as a list of bits, each with its kind; written from the documentation."""

    def __init__(self, kinds, reset):
        self.kinds = kinds
        self.bits = [reset >> n & 1 for n in range(WIDTH)]
        self.untouched = True

    def value(self):
        return sum(bit << n for n, bit in enumerate(self.bits))

    def read(self):
        before = self.value()
        for n, kind in enumerate(self.kinds):
            if kind == "rc":
                self.bits[n] = 0
        return before

    def write(self, value):
        new = [value >> n & 1 for n in range(WIDTH)]
        for n, kind in enumerate(self.kinds):
            if kind == "lock" and self.bits[n] == 1:
                return False
        for n, kind in enumerate(self.kinds):
            if kind == "fault" and self.bits[n] != new[n]:
                return False
        for n, kind in enumerate(self.kinds):
            if kind == "rw" or (kind == "once" and self.untouched):
                self.bits[n] = new[n]
            elif kind in ("w1s", "lock") and new[n] == 1:
                self.bits[n] = 1
            elif kind == "w1c" and new[n] == 1:
                self.bits[n] = 0
        self.untouched = False
        return True


def spec(kinds):
    return {str(n): str(kind) for n, kind in enumerate(kinds)}


@given(kinds, values, st.lists(st.one_of(st.none(), values), max_size=6), st.data())
def test_bits_are_what_a_bit_by_bit_register_does(kinds, reset, steps, data):
    bits, reference = Bits.parse(spec(kinds)), Reference(kinds, reset)
    value, first = reset, True
    for step in steps:
        if step is None:
            assert reference.read() == value
            value &= ~bits.rc
            continue
        if data.draw(st.booleans()):  # a write that leaves reserved bits alone
            step = step & ~bits.fault | value & bits.fault
        new = bits.write(value, step, first=first)
        assert reference.write(step) is (new is not None)
        if new is not None:
            value, first = new, False
        assert value == reference.value()


@given(kinds)
def test_bits_are_written_as_they_are_read(kinds):
    bits = Bits.parse(spec(kinds))
    assert Bits.parse(bits.spec()) == bits
    assert sum(bits) == (1 << WIDTH) - 1  # each bit has one kind


def test_feature_control():
    bits = Bits.parse({"0": "lock", "1-2": "rw", "15": "rw", "*": "fault"})
    assert bits.write(0, 0x10, first=True) is None
    assert bits.write(0, 0x6, first=True) == 0x6
    assert bits.write(6, 0x5, first=False) == 0x5
    assert bits.write(5, 0x5, first=False) is None


@pytest.mark.parametrize(
    ("wrong", "piece"),
    [
        ({"64": "rw"}, "bits 0 to 63"),
        ({"a": "rw"}, "is not a range of bits"),
        ({"1": "rx"}, "'rx' is not a kind of bit"),
        ({"1": "loc"}, "did you mean 'lock'"),
        ({"1-5": "rw", "3": "ro"}, "overlap"),
        ({"*": "no"}, "is not a kind"),
    ],
)
def test_what_is_wrong_with_bits_is_told(wrong, piece):
    with pytest.raises(PolicyError, match=piece):
        Bits.parse(wrong)


def test_bits_may_be_written_as_data_sheets_do():
    assert parse_span("63:32".replace(":", "-")) == (32, 63)
    assert parse_span(7) == (7, 7)
