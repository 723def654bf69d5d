# SPDX-License-Identifier: Apache-2.0
"""KVM_X86_SET_MSR_FILTER: what is refused, in which order, and what is then allowed."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.backend.soft.msr.filter import READ, WRITE, MsrFilter
from tests.backend.soft.msr.scripted import X, filter_bytes, make_filter

BOTH = READ | WRITE
DENY = 1
GOOD = (BOTH, X, b"\xff")


def errno_for(*ranges, flags=0, read_user=None):
    raw, read = filter_bytes(*ranges, flags=flags)
    try:
        MsrFilter.from_bytes(raw, read_user or read)
    except OSError as error:
        return error.errno
    return 0


def fault(address, size):
    raise OSError(errno.EFAULT, "")


# Validation


@pytest.mark.parametrize(
    ("ranges", "flags", "expected"),
    (
        ((), 0, 0),
        ((), DENY, errno.EINVAL),
        ((), 2, errno.EINVAL),
        ((GOOD,), DENY, 0),
        ((GOOD,), 2, errno.EINVAL),
        ((GOOD,), 3, errno.EINVAL),
        (((0, X, b"\0"),), 0, errno.EINVAL),
        (((4, X, b"\0"),), 0, errno.EINVAL),
        (((7, X, b"\0"),), 0, errno.EINVAL),
        (((BOTH, 0, bytes(0x600)),), 0, 0),
        (((BOTH, 0, bytes(0x600), 0x3001),), 0, errno.EINVAL),
        (((BOTH, 0, b"", 0xFFFF_FFFF),), 0, errno.EINVAL),
        ((GOOD,) * 16, DENY, 0),
        (((BOTH, 0xFFFF_FFF0, b"\0\0\0\0"),), 0, 0),  # wraps, and is none the worse for it
    ),
)
def test_what_is_refused(ranges, flags, expected):
    assert errno_for(*ranges, flags=flags) == expected


def test_an_unused_slot_is_not_looked_at():
    assert errno_for((0xFFFF_FFFF, X, b"", 0), GOOD) == 0
    assert errno_for((0xFFFF_FFFF, X, b"", 0), read_user=fault) == 0
    assert errno_for((BOTH, X, b"", 0), flags=DENY) == errno.EINVAL  # nor does it count


def test_padding_is_not_looked_at():
    raw, read = filter_bytes(GOOD)
    for place in (4, 8 + 12):
        raw = raw[:place] + b"\xff" * 4 + raw[place + 4 :]
    assert MsrFilter.from_bytes(raw, read).allowed(X, READ)


def test_the_first_wrong_slot_decides():
    bad = (4, X, b"\0")
    seen = []

    def read(address, size):
        seen.append((address, size))
        if len(seen) == 2:
            raise OSError(errno.EFAULT, "")
        return bytes(size)

    assert errno_for(GOOD, GOOD, bad, read_user=read) == errno.EFAULT
    seen.clear()
    assert errno_for(GOOD, bad, GOOD, read_user=read) == errno.EINVAL
    assert seen == [(1 << 12, 8)]
    assert errno_for(bad, read_user=fault) == errno.EINVAL
    assert errno_for(GOOD, flags=2, read_user=fault) == errno.EINVAL


@pytest.mark.parametrize(("nmsrs", "size"), ((1, 8), (64, 8), (65, 16), (0x3000, 0x600)))
def test_bitmaps_are_read_in_words(nmsrs, size):
    sizes = []
    raw, _ = filter_bytes((BOTH, 0, b"", nmsrs))
    MsrFilter.from_bytes(raw, lambda address, size: sizes.append(size) or bytes(size))
    assert sizes == [size]


# Decisions


def test_a_bit_stands_for_an_msr_least_significant_first():
    one = make_filter((BOTH, X, b"\x02\x80"))
    assert [n for n in range(-1, 17) if one.allowed(X + n, READ)] == [-1, 1, 15, 16]


def test_outside_of_all_ranges_the_default_holds():
    deny = make_filter((BOTH, X, b"\x01", 1), flags=DENY)
    assert [deny.allowed(X + n, WRITE) for n in (-1, 0, 1)] == [False, True, False]


def test_the_first_range_of_the_right_kind_wins():
    allow, refuse = (BOTH, X, b"\xff"), (BOTH, X, b"\0")
    assert make_filter(allow, refuse).allowed(X, READ)
    assert not make_filter(refuse, allow).allowed(X, READ)
    split = make_filter((READ, X, b"\0"), (WRITE, X, b"\xff"), flags=DENY)
    assert (split.allowed(X, READ), split.allowed(X, WRITE)) == (False, True)
    writes = make_filter((WRITE, X, b"\xff"), flags=DENY)
    assert not writes.allowed(X, READ)


def test_x2apic_registers_are_never_denied():
    one = make_filter((BOTH, 0x7F0, bytes(40)), flags=DENY)
    edges = (0x7FF, 0x800, 0x802, 0x8FF, 0x900)
    assert [one.allowed(index, READ) for index in edges] == [False, True, True, True, False]


@pytest.mark.parametrize("base", (0xFFFF_FFC0, 0xFFFF_FFF0))
def test_a_range_that_wraps_matches_nothing(base):
    one = make_filter((BOTH, base, bytes(8)))
    assert all(one.allowed(index, READ) for index in (base, 0xFFFF_FFFF, 0))


def test_the_bitmap_is_copied():
    memory = bytearray(8)
    raw, _ = filter_bytes((BOTH, X, b"\0"))
    one = MsrFilter.from_bytes(raw, lambda address, size: bytes(memory[:size]))
    memory[0] = 0xFF
    assert not one.allowed(X, READ)


# Against a model, which knows ranges as lists of answers

PLACES = st.sampled_from((0, 0x7F8, 0x8F8, X, 0xC000_0080, 0xFFFF_FFC0, 0xFFFF_FFF8))
NEAR = st.builds(lambda place, by: place + by & 0xFFFF_FFFF, PLACES, st.integers(-3, 70))
RANGES = st.tuples(st.integers(1, 3), NEAR, st.lists(st.booleans(), max_size=70))


def expected(ranges, flags, index, kind):
    if index in range(0x800, 0x900):
        return True
    for kinds, base, answers in ranges:
        ends_in_bounds = base + len(answers) < 1 << 32
        if kinds & kind and ends_in_bounds and index in range(base, base + len(answers)):
            return answers[index - base]
    return not flags


def packed(answers):
    bits = sum(answer << place for place, answer in enumerate(answers))
    return struct.pack("<QQ", bits & (1 << 64) - 1, bits >> 64)


@given(
    st.lists(RANGES, max_size=16), st.integers(0, 1), st.lists(NEAR, min_size=1), st.integers(1, 2)
)
def test_the_filter_decides_as_the_model_does(ranges, flags, indices, kind):
    given_ranges = [(kinds, base, packed(bits), len(bits)) for kinds, base, bits in ranges]
    if flags and not any(bits for *_, bits in ranges):
        assert errno_for(*given_ranges, flags=flags) == errno.EINVAL
        return
    one = make_filter(*given_ranges, flags=flags)
    starts = [base for _, base, _ in ranges]
    for index in (*indices, *starts):
        assert one.allowed(index, kind) == expected(ranges, flags, index, kind), hex(index)
