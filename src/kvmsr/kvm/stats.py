# SPDX-License-Identifier: Apache-2.0
"""
Binary statistics
-----------------

The counters that KVM keeps for a VM or a vCPU, read from the file descriptor that
KVM_GET_STATS_FD gives. Source: Linux Documentation/virt/kvm/api.rst 4.133.
"""

import os
from typing import Final, NamedTuple

from kvmsr.abi import size_of, vm

__all__ = ("Stat", "read")

_KINDS: Final = ("cumulative", "instant", "peak", "linear-histogram", "log-histogram")
_UNITS: Final = ("", "bytes", "seconds", "cycles", "boolean")
_BASES: Final = (10, 2)


class Stat(NamedTuple):
    """
    One statistic.

    :ivar values: one number, or the buckets of a histogram.
    :ivar kind: ``cumulative``, ``instant``, ``peak``, ``linear-histogram`` or ``log-histogram``.
    :ivar unit: of ``value * base ** exponent``: bytes, seconds, cycles, boolean, or none.
    :ivar bucket_size: of a linear histogram.
    """

    name: str
    values: tuple[int, ...]
    kind: str
    unit: str
    base: int
    exponent: int
    bucket_size: int


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else f"unknown-{number}"


def read(fd: int) -> dict[str, Stat]:
    """Return all statistics of *fd* by name."""
    header_size = size_of(vm.StatsHeader)
    header = vm.StatsHeader.from_buffer_copy(os.pread(fd, header_size, 0))
    desc_size = size_of(vm.StatsDesc)
    stride = desc_size + header.name_size
    block = os.pread(fd, stride * header.num_desc, header.desc_offset)
    stats = {}
    for start in range(0, len(block), stride):
        desc = vm.StatsDesc.from_buffer_copy(block, start)
        name = block[start + desc_size : start + stride].split(b"\0", 1)[0].decode()
        raw = os.pread(fd, 8 * desc.size, header.data_offset + desc.offset)
        stats[name] = Stat(
            name,
            tuple(memoryview(raw).cast("Q")),
            _word(_KINDS, desc.flags & 0xF),
            _word(_UNITS, desc.flags >> 4 & 0xF),
            _BASES[desc.flags >> 8 & 1],
            desc.exponent,
            desc.bucket_size,
        )
    return stats
