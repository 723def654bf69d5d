"""Where RAM is."""

import pytest

from kvmsr.errors import GuestMemoryError
from kvmsr.machine.layout import Layout


def test_ram_leaves_room_below_4_gib():
    small = Layout.of(64 << 20)
    assert (small.low_size, small.high_size) == (64 << 20, 0)
    large = Layout.of(8 << 30)
    assert large.low_size + large.high_size == 8 << 30
    assert large.low_size == 3 << 30
    for layout in (small, large):
        entries = layout.e820()
        assert entries == sorted(entries)
        ends = [start + size for start, size, _ in entries]
        assert all(end <= start for end, (start, _, _) in zip(ends, entries[1:], strict=False))


@pytest.mark.parametrize("size", [0, -1, 4096, (64 << 20) + 1, 1 << 60])
def test_absurd_amounts_of_memory_are_refused(size):
    with pytest.raises(GuestMemoryError, match="2 MiB to 1 TiB"):
        Layout.of(size)
