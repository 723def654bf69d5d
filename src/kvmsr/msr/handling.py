# SPDX-License-Identifier: Apache-2.0
"""
What KVM handles
----------------

Which MSRs which module of KVM handles itself, since which version of Linux, and how.

``data/kvm.toml`` has the facts and their sources. Reading it is slow, so the package contains
``data/kvm.json``, which ``tools/build_catalog.py`` makes of it.
"""

import functools
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kvmsr.errors import CatalogError
from kvmsr.msr.data_file import data_file

__all__ = ("HandledRange", "Handling", "handled", "handling", "read_handling")

_MODULES: Final = ("kvm", "kvm_intel", "kvm_amd")
_HOW: Final = ("", "emulated", "passed", "constant", "ignored", "refused")


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


class Handling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    How modules of KVM handle guests' accesses to a range of MSRs.

    :ivar first: the first MSR.
    :ivar last: the last MSR.
    :ivar by: the modules: ``kvm``, ``kvm_intel``, ``kvm_amd``.
    :ivar reads: how reads are handled: ``emulated`` (KVM keeps a value for the vCPU, or computes
        it), ``passed`` (to the CPU's own register), ``constant`` (they give *value*), or
        ``refused`` (user space sees ``invalid``); "" if these modules do not know them.
    :ivar writes: the same for writes, which may also be ``ignored``.
    :ivar value: what reads give that are ``constant``.
    :ivar since: the first Linux version with this, such as ``6.4``; "" if that is before 5.10.
    :ivar not_in: the last version known not to have it, if the first is not known for certain.
    :ivar until: the last version with this; "" if Linux 7.1 has it.
    :ivar doubt: ``r``, ``w`` or ``rw`` in place of all that: no KVM that was looked at handles
        these accesses, but policies are prepared for one that does.
    :ivar note: conditions, in a few words.
    :ivar what: what the MSRs are, in a few words.
    """

    first: int
    last: int
    by: tuple[str, ...] = ()
    reads: str = ""
    writes: str = ""
    value: int = 0
    since: str = ""
    not_in: str = ""
    until: str = ""
    doubt: str = ""
    note: str = ""
    what: str = ""


@functools.cache
def _facts() -> tuple[Handling, ...]:
    return msgspec.json.decode(data_file("kvm.json"), type=tuple[Handling, ...])


def handling(index: int) -> tuple[Handling, ...]:
    """Return how KVM handles MSR *index*: one row for each way; empty if no KVM knows it."""
    return tuple(row for row in _facts() if row.first <= index <= row.last)


@functools.cache
def handled() -> tuple[HandledRange, ...]:
    """
    Return the MSRs that some KVM may handle itself, in ascending order and without overlaps.

    Every KVM since Linux 5.10 gives all other MSRs up as unknown.
    """
    borders = {row.first for row in _facts()} | {row.last + 1 for row in _facts()}
    ranges: list[HandledRange] = []
    over: list[Handling] = []
    rows = list(reversed(_facts()))
    for start, end in pairwise(sorted(borders)):
        over = [row for row in over if row.last >= start]
        while rows and rows[-1].first == start:
            over.append(rows.pop())
        if not over:
            continue
        reads = any(row.reads or "r" in row.doubt for row in over)
        writes = any(row.writes or "w" in row.doubt for row in over)
        what = over[0].what
        before = ranges[-1] if ranges else None
        if before and (before.last + 1, *before[2:]) == (start, reads, writes, what):
            start = ranges.pop().first
        ranges.append(HandledRange(start, end - 1, reads, writes, what))
    return tuple(ranges)


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """A row as people write it."""

    first: int
    last: int | None = None
    by: str | tuple[str, ...] = ()
    reads: str = ""
    writes: str = ""
    value: int = 0
    since: str = ""
    not_in: str = ""
    until: str = ""
    doubt: str = ""
    note: str = ""
    what: str = ""


def read_handling(path: Path) -> tuple[Handling, ...]:
    """
    Return the facts of the file that people maintain, in order of the MSRs.

    :raises CatalogError: if it is not valid; the message names the row.
    """
    import tomllib

    text = tomllib.loads(path.read_text("utf-8"))
    try:
        rows = msgspec.convert(text["row"], tuple[_Row, ...])
    except msgspec.ValidationError as error:
        raise CatalogError(f"{path.name}: {error}") from None
    return tuple(sorted(map(_checked, rows), key=lambda row: row.first))


def _checked(row: _Row) -> Handling:
    given = msgspec.structs.asdict(row)
    given["last"] = row.first if row.last is None else row.last
    given["by"] = (row.by,) if isinstance(row.by, str) else row.by
    made = Handling(**given)
    valid = (
        made.first <= made.last
        and bool(made.by) != bool(made.doubt)
        and bool(made.reads or made.writes) != bool(made.doubt)
        and set(made.by) <= set(_MODULES)
        and {made.reads, made.writes} <= set(_HOW)
        and made.reads != "ignored"
        and made.writes != "constant"
    )
    if not valid:
        raise CatalogError(f"kvm.toml: the row of {made.first:#x} is not valid")
    return made
