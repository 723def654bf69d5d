# SPDX-License-Identifier: Apache-2.0
"""
Tables of ioctls
----------------

The arguments that end in an array: CPUID entries, MSR lists with and without values.
"""

import errno
import os
import struct
from collections.abc import Sequence
from typing import Any, Final

from kvmsr.abi import MAX_IO_MSRS, cpu, size_of
from kvmsr.backend.soft.uaccess import read_struct, read_user, write_user

__all__ = (
    "CpuidEntry",
    "read_cpuid",
    "read_msrs",
    "write_cpuid",
    "write_indices",
    "write_msrs",
)

CpuidEntry = tuple[int, int, int, int, int, int, int]
"""function, index, flags, eax, ebx, ecx, edx"""

_HEAD: Final = 8
_MAX_CPUID: Final = 256
_ENTRY: Final = struct.Struct("<IIQ")
_CPUID: Final = struct.Struct("<7I12x")


def read_msrs(arg: int) -> list[tuple[int, int]]:
    """
    Return the indices and values of a struct kvm_msrs.

    :raises OSError: E2BIG for too many, EFAULT.
    """
    count = read_struct(cpu.Msrs, arg).nmsrs
    if count > MAX_IO_MSRS:
        raise _error(errno.E2BIG)
    raw = read_user(arg + _HEAD, count * _ENTRY.size)
    return [(index, data) for index, _, data in _ENTRY.iter_unpack(raw)]


def write_msrs(arg: int, entries: Sequence[tuple[int, int]]) -> None:
    """Write the values back."""
    for number, (_, data) in enumerate(entries):
        write_user(arg + _HEAD + number * _ENTRY.size + 8, data.to_bytes(8, "little"))


def write_indices(arg: int, indices: Sequence[int]) -> int:
    """
    Write a struct kvm_msr_list: the count always, the indices if there is room.

    :raises OSError: E2BIG where there is none, EFAULT.
    """
    room = int.from_bytes(read_user(arg, 4), "little")
    write_user(arg, len(indices).to_bytes(4, "little"))
    if room < len(indices):
        raise _error(errno.E2BIG)
    write_user(arg + 4, struct.pack(f"<{len(indices)}I", *indices))
    return 0


def read_cpuid(arg: int) -> tuple[CpuidEntry, ...]:
    """Return the entries of a struct kvm_cpuid2; raises E2BIG and EFAULT."""
    count = read_struct(cpu.Cpuid2, arg).nent
    if count > _MAX_CPUID:
        raise _error(errno.E2BIG)
    raw = read_user(arg + _HEAD, count * _CPUID.size)
    return tuple(_CPUID.iter_unpack(raw))


def write_cpuid(arg: int, entries: Sequence[CpuidEntry]) -> int:
    """
    Write a struct kvm_cpuid2.

    :raises OSError: E2BIG where there is no room for all, EFAULT.
    """
    head: Any = read_struct(cpu.Cpuid2, arg)
    if head.nent < len(entries):
        raise _error(errno.E2BIG)
    head.nent = len(entries)
    write_user(arg, head)
    raw = b"".join(_CPUID.pack(*entry) for entry in entries)
    if raw:
        write_user(arg + size_of(cpu.Cpuid2), raw)
    return 0


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
