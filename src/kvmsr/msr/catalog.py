# SPDX-License-Identifier: Apache-2.0
"""
The catalog
-----------

What is known about MSRs: their names, and which of them KVM may handle itself.
"""

import difflib
import functools
import tomllib
from collections.abc import Iterator
from importlib import resources
from typing import Any, Final, NamedTuple

from kvmsr.errors import UnknownMsrError

__all__ = ("Catalog", "HandledRange", "Msr", "catalog", "handled")

_FILES: Final = ("intel.toml", "amd.toml", "kvm.toml", "hyperv.toml")


class Msr(NamedTuple):
    """
    One MSR.

    :ivar index: 0 to 2**32 - 1.
    :ivar name: its canonical name.
    :ivar aliases: its other names.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    name: str
    aliases: tuple[str, ...]


class HandledRange(NamedTuple):
    """MSRs *first* to *last* that some KVM handles itself, for reads, for writes, or for both."""

    first: int
    last: int
    reads: bool
    writes: bool


class Catalog:
    """MSRs by index and by name; names are looked up without regard to case."""

    def __init__(self, msrs: Iterator[Msr]) -> None:
        self._by_index: dict[int, Msr] = {}
        self._by_name: dict[str, Msr] = {}
        for msr in msrs:
            self._by_index.setdefault(msr.index, msr)
            for name in (msr.name, *msr.aliases):
                self._by_name.setdefault(name.lower(), msr)

    def __getitem__(self, index: int) -> Msr:
        """Return MSR *index*; KeyError if it has no name here."""
        return self._by_index[index]

    def __contains__(self, index: object) -> bool:
        return index in self._by_index

    def __iter__(self) -> Iterator[Msr]:
        return iter(self._by_index.values())

    def __len__(self) -> int:
        return len(self._by_index)

    def name(self, index: int) -> str:
        """Return the canonical name of MSR *index*, or "" if it has none here."""
        msr = self._by_index.get(index)
        return msr.name if msr else ""

    def lookup(self, name: str) -> Msr:
        """
        Return the MSR called *name*.

        :raises UnknownMsrError: naming those that look like it.
        """
        msr = self._by_name.get(name.lower())
        if msr is None:
            near = difflib.get_close_matches(name.lower(), self._by_name, n=3, cutoff=0.6)
            nearest = [self._by_name[found].name for found in near]
            raise UnknownMsrError(name, list(dict.fromkeys(nearest)))
        return msr


def _table(file: str) -> Any:
    return tomllib.loads(resources.files("kvmsr.msr").joinpath("data", file).read_text("utf-8"))


def _read() -> Iterator[Msr]:
    for file in _FILES:
        for entry in _table(file)["msr"]:
            yield from _expand(entry)


def _expand(entry: dict[str, Any]) -> Iterator[Msr]:
    for n in range(entry.get("count", 1)):
        index = entry["index"] + n * entry.get("stride", 1)
        names = (entry["name"], *entry.get("aliases", ()))
        number = str(entry.get("from", 0) + n)
        name, *aliases = (text.replace("{n}", number) for text in names)
        yield Msr(index, name, tuple(aliases))


@functools.cache
def catalog() -> Catalog:
    """Return the catalog that comes with kvmsr, read on first use."""
    return Catalog(_read())


@functools.cache
def handled() -> tuple[HandledRange, ...]:
    """
    Return the MSRs that some KVM may handle itself, ascending and apart.

    Of every other MSR each KVM from Linux 5.10 on says that it does not know it; the source is in
    the data file ``handled.toml``.
    """
    return tuple(
        HandledRange(row["first"], row["last"], "r" in row["access"], "w" in row["access"])
        for row in _table("handled.toml")["handled"]
    )
