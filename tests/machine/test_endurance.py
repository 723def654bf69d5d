"""What a long run leaves behind: nothing."""

import resource
import struct
from pathlib import Path

import pytest

from kvmsr.policy import Policy, Rule
from tests.harness import machine_with

ACCESSES = 1_000_000
# mov $ACCESSES, %edi; mov $0x35, %ecx; 1: rdmsr; dec %edi; jnz 1b; mov $0, %al; out %al, $0xf4
LOOP = (
    b"\x66\xbf" + struct.pack("<I", ACCESSES) + b"\x66\xb9\x35\0\0\0\x0f\x32\x66\x4f\x75\xfa"
    b"\xb0\x00\xe6\xf4"
)  # fmt: skip


def resident():
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def held():
    """Return how many threads and file descriptors this process has."""
    return [len(list(Path("/proc/self", what).iterdir())) for what in ("task", "fd")]


@pytest.mark.slow
def test_a_million_accesses_leave_memory_as_it_was(tmp_path):
    sizes, holds = [], []
    count = 0

    def answer(access):
        nonlocal count
        count += 1
        if count % 100_000 == 0:
            sizes.append(resident())
            holds.append(held())
        return count

    policy = Policy([Rule(0x35, read=answer)])
    with machine_with(tmp_path, LOOP, policy) as machine:
        result = machine.run(timeout=300)
    (row,) = result.summary
    assert (row.count, row.first_value, row.last_value) == (ACCESSES, 1, ACCESSES)
    assert len(sizes) == 10
    assert sizes[-1] - sizes[0] < 1 << 20
    assert holds[-1] == holds[0]
