# SPDX-License-Identifier: Apache-2.0
"""
The catalog
-----------

Facts about MSRs, by index and by name.
"""

import fnmatch
import functools
import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import msgspec

from kvmsr.errors import UnknownMsrError
from kvmsr.msr.cpu import Cpu
from kvmsr.msr.data_file import data_file
from kvmsr.msr.entry import Msr

__all__ = ("X2APIC", "Catalog", "catalog")

X2APIC: Final = (0x800, 0x8FF)
"""First and last MSR that no filter can deny: KVM allows them before it looks at the filter."""

_PREFIXES: Final = (
    "msr_ia32_",
    "ia32_",
    "msr_amd64_",
    "msr_amd_",
    "hv_x64_msr_",
    "msr_kvm_",
    "msr_",
)
_RANGES: Final = (
    (0x00000000, 0x00001FFF, "the architectural range of Intel's and AMD's MSRs"),
    (0x40000000, 0x400000FF, "Hyper-V's synthetic MSRs, which hypervisors offer"),
    (0x40000100, 0x400010FF, "a range for hypervisors: Hyper-V's crash registers and others"),
    (0x4B564D00, 0x4B564DFF, "KVM's paravirtual MSRs"),
    (0xC0000000, 0xC0001FFF, "AMD's architectural range, which Intel partly shares"),
    (0xC0002000, 0xC00023FF, "AMD's banks of machine checks"),
    (0xC0010000, 0xC001FFFF, "AMD's model-specific range"),
)


class _Row(msgspec.Struct, array_like=True):
    """An entry as the data file has it; *shared* is the number of the rest among the others'."""

    index: int
    names: tuple[str, ...]
    about: str
    shared: int


class _File(msgspec.Struct):
    """
    The data file. What many entries have in common, such as those of one bank, it has once: as an
    entry without index, names and description. Most look-ups need few, so they stay encoded.
    """

    shared: list[msgspec.Raw]
    rows: list[_Row]


class Catalog:
    """
    MSRs by index and by name. Names are case-insensitive.

    An index may have several *meanings*: entries for different CPUs. A name belongs to one index.

    :ivar cpu: the CPU whose meanings are preferred where none is given. A command that speaks of
        one guest sets it, and all names that it prints follow.
    """

    def __init__(self, file: _File) -> None:
        self._by_index: dict[int, list[_Row]] = {}
        self._encoded = file.shared
        self._shared: dict[int, Msr] = {}
        self._decoded: dict[int, Msr] = {}
        self.cpu: Cpu | None = None
        for row in file.rows:
            self._by_index.setdefault(row.index, []).append(row)

    @functools.cached_property
    def _by_name(self) -> dict[str, _Row]:
        found: dict[str, _Row] = {}
        for rows in self._by_index.values():
            for row in rows:
                for name in row.names:
                    found.setdefault(name.lower(), row)
        return found

    def __getitem__(self, index: int) -> Msr:
        """Return MSR *index*, as :meth:`get` does. Raise KeyError if the catalog has none."""
        found = self.get(index)
        if found is None:
            raise KeyError(index)
        return found

    def __contains__(self, index: object) -> bool:
        return index in self._by_index

    def __iter__(self) -> Iterator[Msr]:
        """Iterate over all entries, in order of their indices."""
        return (self._msr(row) for rows in self._by_index.values() for row in rows)

    def __len__(self) -> int:
        """Return the number of entries."""
        return sum(map(len, self._by_index.values()))

    def get(self, index: int, cpu: Cpu | None = None) -> Msr | None:
        """
        Return MSR *index*, or None if the catalog does not have it.

        :param cpu: the CPU whose MSR it is, for its meaning there; by default the meaning on
            :attr:`cpu`, or else the first.
        """
        found = self.meanings(index)
        wanted = cpu or self.cpu
        if wanted is not None and (len(found) > 1 or cpu is not None):
            there = sorted((m for m in found if m.holds_on(wanted)), key=lambda m: not m.cpus)
            found = tuple(there) if there or cpu is not None else found
        return found[0] if found else None

    def meanings(self, index: int) -> tuple[Msr, ...]:
        """Return the meanings of MSR *index*: first what holds for all CPUs of a vendor."""
        return tuple(map(self._msr, self._by_index.get(index, ())))

    def indices(self, first: int, last: int) -> tuple[int, ...]:
        """Return the MSRs from *first* to *last* that have a name, in ascending order."""
        return tuple(index for index in self._by_index if first <= index <= last)

    def name(self, index: int, cpu: Cpu | None = None) -> str:
        """
        Return the canonical name of MSR *index*, or "" if the catalog does not have it.

        :param cpu: the CPU whose MSR it is; by default :attr:`cpu`. If it has none with this
            index, another CPU's name is better than a number.
        """
        rows = self._by_index.get(index)
        if rows is None:
            return ""
        cpu = cpu or self.cpu
        msr = self.get(index, cpu) if cpu is not None and len(rows) > 1 else None
        return msr.name if msr else rows[0].names[0]

    def names(self) -> list[str]:
        """Return all names and aliases, in lower case."""
        return list(self._by_name)

    def _msr(self, row: _Row) -> Msr:
        found = self._decoded.get(id(row))
        if found is None:
            shared = self._shared.get(row.shared)
            if shared is None:
                encoded = self._encoded[row.shared]
                shared = self._shared[row.shared] = msgspec.json.decode(encoded, type=Msr)
            name, *aliases = row.names
            found = self._decoded[id(row)] = msgspec.structs.replace(
                shared, index=row.index, name=name, aliases=tuple(aliases), about=row.about
            )
        return found

    def lookup(self, name: str) -> Msr:
        """
        Return the MSR called *name*, which may omit a prefix like ``IA32_`` or ``MSR_``.

        :raises UnknownMsrError: if there is none; it suggests similar names.
        """
        wanted = name.strip().lower()
        row = self._by_name.get(wanted)
        if row is None:
            row = next(
                (self._by_name[p + wanted] for p in _PREFIXES if p + wanted in self._by_name), None
            )
        if row is None:
            raise UnknownMsrError(name, self._nearest(wanted))
        return self._msr(row)

    def _nearest(self, name: str) -> list[str]:
        import difflib

        near = difflib.get_close_matches(name, self._by_name, n=3, cutoff=0.6)
        bare = {_bare(other): other for other in self._by_name}
        near += [bare[n] for n in difflib.get_close_matches(_bare(name), bare, n=3, cutoff=0.7)]
        return list(dict.fromkeys(self._by_name[found].names[0] for found in near))[:3]

    def match(self, pattern: str) -> list[Msr]:
        """
        Return the MSRs with a name or alias that matches *pattern*, in order of their indices.

        Of an index with several such meanings, all are returned.

        :param pattern: may contain ``*``, ``?`` and ``[…]``, as in a shell.
        """
        like = re.compile(fnmatch.translate(pattern.lower())).fullmatch
        return [
            self._msr(row)
            for rows in self._by_index.values()
            for row in rows
            if any(like(name.lower()) for name in row.names)
        ]

    def neighbourhood(self, index: int) -> str:
        """Describe in words where MSR *index* is among the known MSRs."""
        order = list(self._by_index)
        at = bisect_left(order, index)
        below = self[order[at - 1]] if at else None
        above = self[order[at]] if at < len(order) else None
        area = next((text for first, last, text in _RANGES if first <= index <= last), "")
        near = [
            f"{msr.name} ({msr.index:#x})"
            for msr in (below, above)
            if msr is not None and abs(msr.index - index) <= 0x100
        ]
        parts = []
        if len(near) == 2:
            parts.append(f"between {near[0]} and {near[1]}")
        elif near:
            parts.append(f"near {near[0]}")
        parts.append(f"in {area}" if area else "in no range that CPUs or hypervisors use")
        return ", ".join(parts)


def _bare(name: str) -> str:
    return next((name[len(p) :] for p in _PREFIXES if name.startswith(p)), name)


@functools.cache
def catalog() -> Catalog:
    """Return the catalog that comes with kvmsr. It is read on first use."""
    return Catalog(msgspec.json.decode(data_file("catalog.json"), type=_File))
