# SPDX-License-Identifier: Apache-2.0
"""
MSR lists
---------

KVM_GET_MSRS and KVM_SET_MSRS: a *count* says how far they came, and one call takes 255 entries.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from kvmsr.abi import MAX_IO_MSRS, cpu, ioctls
from kvmsr.errors import MsrListError, UsageError
from kvmsr.kvm.handle import Handle
from kvmsr.text import counted


def _chunks(pairs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    entries = iter(pairs)
    while chunk := list(islice(entries, MAX_IO_MSRS)):
        yield chunk


def _do(handle: Handle, request: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Do *request* for all *pairs* of index and value, and return the values afterwards."""
    for index, value in pairs:
        if not (0 <= index < 1 << 32 and 0 <= value < 1 << 64):
            raise UsageError(
                f"MSR {index:#x} with value {value:#x}: an index has 32 bits and a value 64"
            )
    values: list[int] = []
    for chunk in _chunks(pairs):
        table = cpu.msrs(len(chunk))
        table.nmsrs = len(chunk)
        for entry, (index, value) in zip(table.entries, chunk, strict=True):
            entry.index = index
            entry.data = value
        count = handle.ioctl(request, table, counted(len(chunk), "MSR"))
        values += [entry.data for entry in table.entries[:count]]
        if count < len(chunk):
            index, value = chunk[count]
            is_set = request == ioctls.KVM_SET_MSRS
            raise MsrListError(
                ioctls.NAMES[request], index, len(values), len(pairs), value if is_set else None
            )
    return values


def get(handle: Handle, indices: Iterable[int]) -> dict[int, int]:
    """
    Return the values of MSRs by index.

    :raises MsrListError: at the first that KVM refuses.
    :raises UsageError: for a number that is no index; nothing is done then.
    """
    wanted = list(indices)
    values = _do(handle, ioctls.KVM_GET_MSRS, [(index, 0) for index in wanted])
    return dict(zip(wanted, values, strict=True))


def set_(handle: Handle, pairs: Iterable[tuple[int, int]]) -> None:
    """
    Set MSRs, in order.

    :raises MsrListError: at the first that KVM refuses; those before it are set.
    :raises UsageError: for a number out of range; nothing is set then.
    """
    _do(handle, ioctls.KVM_SET_MSRS, list(pairs))
