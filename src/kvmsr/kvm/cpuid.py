# SPDX-License-Identifier: Apache-2.0
"""
CPUID tables
------------

A table of CPUID leaves, as KVM gives and takes it.
"""

import errno
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX, cpu

__all__ = ("CpuidEntry", "CpuidTable")

_MOST_LEAVES = 4096


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One leaf: what EAX = *function* (and ECX = *index*, where it counts) gives."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int

    @property
    def has_index(self) -> bool:
        """Return whether the subleaf counts."""
        return bool(self.flags & CPUID_FLAG_SIGNIFCANT_INDEX)


class CpuidTable(tuple[CpuidEntry, ...]):
    """CPUID leaves in KVM's order; immutable, :meth:`replace` makes a changed copy."""

    __slots__ = ()

    def find(self, function: int, index: int = 0) -> CpuidEntry | None:
        """Return leaf *function*, subleaf *index* where subleaves count; or None."""
        for entry in self:
            if entry.function == function and (not entry.has_index or entry.index == index):
                return entry
        return None

    @property
    def vendor(self) -> str:
        """Return the vendor's 12 letters, for example ``GenuineIntel``; "" without leaf 0."""
        leaf = self.find(0)
        registers = () if leaf is None else (leaf.ebx, leaf.edx, leaf.ecx)
        return b"".join(part.to_bytes(4, "little") for part in registers).decode("latin-1")

    def replace(self, change: Callable[[CpuidEntry], CpuidEntry | None]) -> "CpuidTable":
        """Return a copy with each leaf as *change* gives it; None leaves it out."""
        changed = (change(entry) for entry in self)
        return CpuidTable(entry for entry in changed if entry is not None)

    def __repr__(self) -> str:
        return f"CpuidTable({len(self)} leaves)"


def to_struct(entries: Iterable[CpuidEntry]) -> Any:
    """Return the kvm_cpuid2 that holds *entries*."""
    entries = list(entries)
    table = cpu.cpuid2(len(entries))
    table.nent = len(entries)
    for slot, entry in zip(table.entries, entries, strict=True):
        (
            slot.function,
            slot.index,
            slot.flags,
            slot.eax,
            slot.ebx,
            slot.ecx,
            slot.edx,
        ) = astuple(entry)
    return table


def from_kvm(get: Callable[[Any], object]) -> CpuidTable:
    """
    Call *get* with a kvm_cpuid2 that is large enough, and return what it filled in.

    KVM says E2BIG where the table is too small, and not how large it should be.
    """
    count = 128
    while True:
        table = cpu.cpuid2(count)
        table.nent = count
        try:
            get(table)
        except OSError as error:
            if error.errno != errno.E2BIG or count >= _MOST_LEAVES:
                raise
            count *= 2
            continue
        return CpuidTable(
            CpuidEntry(s.function, s.index, s.flags, s.eax, s.ebx, s.ecx, s.edx)
            for s in table.entries[: table.nent]
        )
