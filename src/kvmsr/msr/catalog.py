# SPDX-License-Identifier: Apache-2.0
"""
The catalog
-----------

Facts about MSRs, by index and by name, and which of them KVM may handle itself.
"""

import fnmatch
import functools
import pkgutil
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from kvmsr.errors import UnknownMsrError
from kvmsr.msr.entry import Msr

__all__ = ("X2APIC", "Catalog", "HandledRange", "catalog", "handled")

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
    (0x40000100, 0x40000FFF, "a range for hypervisors: Hyper-V's crash registers and others"),
    (0x4B564D00, 0x4B564DFF, "KVM's paravirtual MSRs"),
    (0xC0000000, 0xC0001FFF, "AMD's architectural range, which Intel partly shares"),
    (0xC0010000, 0xC0011FFF, "AMD's model-specific range"),
)


class HandledRange(NamedTuple):
    """
    A range of MSRs that some KVM handles itself, for reads, for writes, or for both.

    :ivar first: the first MSR.
    :ivar last: the last MSR.
    :ivar reads: whether KVM handles reads.
    :ivar writes: whether KVM handles writes.
    :ivar what: what the MSRs are, in a few words.
    """

    first: int
    last: int
    reads: bool
    writes: bool
    what: str = ""


class Catalog:
    """MSRs by index and by name. Names are case-insensitive."""

    def __init__(self, msrs: Iterable[Msr]) -> None:
        self._by_index: dict[int, Msr] = {}
        self._by_name: dict[str, Msr] = {}
        for msr in msrs:
            self._by_index.setdefault(msr.index, msr)
            self._by_name.setdefault(msr.name.lower(), msr)
            for name in msr.aliases:
                self._by_name.setdefault(name.lower(), msr)

    def __getitem__(self, index: int) -> Msr:
        """Return MSR *index*. Raise KeyError if the catalog does not have it."""
        return self._by_index[index]

    def __contains__(self, index: object) -> bool:
        return index in self._by_index

    def __iter__(self) -> Iterator[Msr]:
        return iter(self._by_index.values())

    def __len__(self) -> int:
        return len(self._by_index)

    def get(self, index: int) -> Msr | None:
        """Return MSR *index*, or None if the catalog does not have it."""
        return self._by_index.get(index)

    def name(self, index: int) -> str:
        """Return the canonical name of MSR *index*, or "" if the catalog does not have it."""
        msr = self._by_index.get(index)
        return msr.name if msr else ""

    def names(self) -> list[str]:
        """Return all names and aliases, in lower case."""
        return list(self._by_name)

    def lookup(self, name: str) -> Msr:
        """
        Return the MSR called *name*, which may omit a prefix like ``IA32_`` or ``MSR_``.

        :raises UnknownMsrError: if there is none; it suggests similar names.
        """
        wanted = name.strip().lower()
        msr = self._by_name.get(wanted)
        if msr is None:
            msr = next(
                (self._by_name[p + wanted] for p in _PREFIXES if p + wanted in self._by_name), None
            )
        if msr is None:
            raise UnknownMsrError(name, self._nearest(wanted))
        return msr

    def _nearest(self, name: str) -> list[str]:
        import difflib

        near = difflib.get_close_matches(name, self._by_name, n=3, cutoff=0.6)
        bare = {_bare(other): other for other in self._by_name}
        near += [bare[n] for n in difflib.get_close_matches(_bare(name), bare, n=3, cutoff=0.7)]
        return list(dict.fromkeys(self._by_name[found].name for found in near))[:3]

    def match(self, pattern: str) -> list[Msr]:
        """
        Return the MSRs with a name or alias that matches *pattern*, in order of their indices.

        :param pattern: may contain ``*``, ``?`` and ``[…]``, as in a shell.
        """
        like = re.compile(fnmatch.translate(pattern.lower())).fullmatch
        found = {msr.index: msr for name, msr in self._by_name.items() if like(name)}
        return [found[index] for index in sorted(found)]

    def search(self, words: str) -> list[Msr]:
        """Return the MSRs with all of *words* in names, description or fields, ordered by index."""
        wanted = words.lower().split()
        return [
            msr
            for _, msr in sorted(self._by_index.items())
            if all(word in _text(msr) for word in wanted)
        ]

    def neighbourhood(self, index: int) -> str:
        """Describe in words where MSR *index* is among the known MSRs."""
        order = sorted(self._by_index)
        at = bisect_left(order, index)
        below = self._by_index[order[at - 1]] if at else None
        above = self._by_index[order[at]] if at < len(order) else None
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


def _text(msr: Msr) -> str:
    fields = (part for field in msr.fields for part in (field.name, field.about))
    return " ".join((msr.name, *msr.aliases, msr.about, *fields)).lower()


@functools.cache
def catalog() -> Catalog:
    """Return the catalog that comes with kvmsr. It is read on first use."""
    return Catalog(msgspec.json.decode(data_file("catalog.json"), type=tuple[Msr, ...]))


@functools.cache
def handled() -> tuple[HandledRange, ...]:
    """
    Return the MSRs that some KVM may handle itself, in ascending order and without overlaps.

    Every KVM since Linux 5.10 gives all other MSRs up as unknown. The data file ``handled.toml``
    names the sources.
    """
    import tomllib

    rows: Any = tomllib.loads(data_file("handled.toml").decode())["handled"]
    return tuple(
        HandledRange(
            row["first"], row["last"], "r" in row["access"], "w" in row["access"], row["what"]
        )
        for row in rows
    )


def data_file(name: str) -> bytes:
    """Return the contents of a data file. (Importing importlib.resources would be slow.)"""
    data = pkgutil.get_data("kvmsr.msr", f"data/{name}")
    assert data is not None
    return data
