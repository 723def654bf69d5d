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


_Entry = tuple[int, tuple[str, ...], str, int]
"""Index, names and description, and where the rest starts, which entries of a bank share."""


class _Table(msgspec.Struct):
    """
    Where the entries are. Most look-ups need few of them, so the others stay encoded.

    :ivar by_index: where the meanings of an index start.
    :ivar by_name: where the first entry with a name starts; names are in lower case. Encoded, too:
        a look-up by index needs none.
    """

    by_index: dict[int, tuple[int, ...]]
    by_name: msgspec.Raw


class Catalog:
    """
    MSRs by index and by name. Names are case-insensitive.

    An index may have several *meanings*: entries for different CPUs. A name belongs to one index.

    :ivar cpu: the CPU whose meanings are preferred where none is given. A command that speaks of
        one guest sets it, and all names that it prints follow.
    """

    def __init__(self, data: bytes) -> None:
        """Read *data*, a JSON array with an item per line: the table, then what it leads to."""
        self._data = data
        self._entries = data.index(b"\n", len(b"[\n")) + 1
        table = data[len(b"[\n") : self._entries - len(b",\n")]
        self._table = msgspec.json.decode(table, type=_Table)
        self._decoded: dict[int, Msr] = {}
        self.cpu: Cpu | None = None

    @functools.cached_property
    def _by_name(self) -> dict[str, int]:
        return msgspec.json.decode(self._table.by_name, type=dict[str, int])

    def __getitem__(self, index: int) -> Msr:
        """Return MSR *index*, as :meth:`get` does. Raise KeyError if the catalog has none."""
        found = self.get(index)
        if found is None:
            raise KeyError(index)
        return found

    def __contains__(self, index: object) -> bool:
        return index in self._table.by_index

    def __iter__(self) -> Iterator[Msr]:
        """Iterate over all entries, in order of their indices."""
        return (self._msr(at) for places in self._table.by_index.values() for at in places)

    def __len__(self) -> int:
        """Return the number of entries."""
        return sum(map(len, self._table.by_index.values()))

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
        return tuple(map(self._msr, self._table.by_index.get(index, ())))

    def indices(self, first: int, last: int) -> tuple[int, ...]:
        """Return the MSRs from *first* to *last* that have a name, in ascending order."""
        return tuple(index for index in self._table.by_index if first <= index <= last)

    def name(self, index: int, cpu: Cpu | None = None) -> str:
        """
        Return the canonical name of MSR *index*, or "" if the catalog does not have it.

        :param cpu: the CPU whose MSR it is; by default :attr:`cpu`. If it has none with this
            index, another CPU's name is better than a number.
        """
        msr = self.get(index, cpu) or self.get(index)
        return msr.name if msr else ""

    def names(self) -> list[str]:
        """Return all names and aliases, in lower case."""
        return list(self._by_name)

    def _msr(self, start: int) -> Msr:
        found = self._decoded.get(start)
        if found is None:
            index, names, about, shared = msgspec.json.decode(self._line(start), type=_Entry)
            if shared not in self._decoded:
                self._decoded[shared] = msgspec.json.decode(self._line(shared), type=Msr)
            found = self._decoded[start] = msgspec.structs.replace(
                self._decoded[shared],
                index=index, name=names[0], aliases=names[1:], about=about,
            )  # fmt: skip
        return found

    def _line(self, start: int) -> bytes:
        begin = self._entries + start
        return self._data[begin : self._data.index(b"\n", begin)].removesuffix(b",")

    def lookup(self, name: str) -> Msr:
        """
        Return the MSR called *name*, which may omit a prefix like ``IA32_`` or ``MSR_``.

        :raises UnknownMsrError: if there is none; it suggests similar names.
        """
        wanted = name.strip().lower()
        known = self._by_name
        spelt = next((p + wanted for p in ("", *_PREFIXES) if p + wanted in known), None)
        if spelt is None:
            raise UnknownMsrError(name, self._nearest(wanted))
        return self._msr(known[spelt])

    def _nearest(self, name: str) -> list[str]:
        import difflib

        known = self._by_name
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        bare = {_bare(other): other for other in known}
        near += [bare[n] for n in difflib.get_close_matches(_bare(name), bare, n=3, cutoff=0.7)]
        return list(dict.fromkeys(self._msr(known[found]).name for found in near))[:3]

    def match(self, pattern: str) -> list[Msr]:
        """
        Return the MSRs with a name or alias that matches *pattern*, in order of their indices.

        Of an index with several such meanings, all are returned.

        :param pattern: may contain ``*``, ``?`` and ``[…]``, as in a shell.
        """
        like = re.compile(fnmatch.translate(pattern.lower())).fullmatch
        places = [at for name, at in self._by_name.items() if like(name)]
        indices = sorted({self._msr(at).index for at in places})
        return [
            msr
            for index in indices
            for msr in self.meanings(index)
            if any(like(name.lower()) for name in (msr.name, *msr.aliases))
        ]

    def neighbourhood(self, index: int) -> str:
        """Describe in words where MSR *index* is among the known MSRs."""
        order = list(self._table.by_index)
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
    return Catalog(data_file("catalog.json"))
