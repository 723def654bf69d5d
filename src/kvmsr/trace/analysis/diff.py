# SPDX-License-Identifier: Apache-2.0
"""
How two traces differ
---------------------

By MSR and direction: which of the two has it, how often, with which outcomes, and the first value
that differs. By vCPU: the first access where the order of MSRs and directions differs.

Times, processes, reasons and rules are not compared: they differ where the guest saw the same.
Values that rise in both traces, as those of clocks do, are not compared either, unless that is
asked for.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from kvmsr.text import counted
from kvmsr.trace.analysis.recorded import OP_SHIFT, WHO_SHIFT, Recorded
from kvmsr.trace.file import OPS, OUTCOMES, Grade

__all__ = ("Answer", "Differences", "FirstDifference", "MsrDifference", "OrderDifference", "diff")

_Array = np.ndarray[Any, Any]

_HAS_VALUE: Final = 4
_RISES: Final = 2
"""How often a value must rise, and never fall, to be that of a clock."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    How an access ended.

    :ivar outcome: ``value``, ``done``, ``fault`` or ``stop``.
    :ivar value: the value read or written; None for a read that got none.
    """

    outcome: str
    value: int | None


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """
    The first access of a vCPU to an MSR, in one direction, that ended differently.

    :ivar vm: the VM.
    :ivar vcpu: the vCPU.
    :ivar position: the number of the access among those of this vCPU to this MSR, from 1.
    :ivar a: how it ended in the first trace.
    :ivar b: how it ended in the second trace.
    """

    vm: int
    vcpu: int
    position: int
    a: Answer
    b: Answer


@dataclass(slots=True)
class MsrDifference:
    """
    How the accesses to an MSR in one direction differ.

    :ivar index: the MSR.
    :ivar op: ``read`` or ``write``.
    :ivar a: the number of accesses by outcome in the first trace; empty if it has none.
    :ivar b: the same in the second trace.
    :ivar first: the first access that ended differently; None if there is none.
    :ivar moved: whether the numbers agree, but not on each vCPU.
    """

    index: int
    op: str
    a: dict[str, int]
    b: dict[str, int]
    first: FirstDifference | None = None
    moved: bool = False

    def __bool__(self) -> bool:
        return self.a != self.b or self.first is not None or self.moved


@dataclass(frozen=True, slots=True)
class OrderDifference:
    """
    The first access of a vCPU that is another one in the other trace.

    :ivar vm: the VM.
    :ivar vcpu: the vCPU.
    :ivar position: the number of the access among all of this vCPU, from 1.
    :ivar a: direction and MSR in the first trace; None if it has no more.
    :ivar b: direction and MSR in the second trace; None if it has no more.
    """

    vm: int
    vcpu: int
    position: int
    a: tuple[str, int] | None
    b: tuple[str, int] | None


@dataclass(slots=True)
class Differences:
    """
    How two traces differ.

    :ivar msrs: by MSR and direction.
    :ivar order: by vCPU.
    :ivar rising: MSRs and directions whose values differ, but rise in both traces.
    :ivar compared: the number of MSRs and directions that were compared.
    :ivar notes: what could not be compared.
    """

    msrs: list[MsrDifference] = field(default_factory=list)
    order: list[OrderDifference] = field(default_factory=list)
    rising: list[tuple[int, str]] = field(default_factory=list)
    compared: int = 0
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.msrs or self.order)


def diff(a: Recorded, b: Recorded, *, exact: bool = False) -> Differences:
    """
    Compare two traces.

    :param exact: whether to compare values that rise in both, too.
    """
    found = {key: MsrDifference(*_pair(key), {}, {}) for key in sorted({*a.pairs, *b.pairs})}
    for key, counts in zip(a.pairs, a.outcomes.tolist(), strict=True):
        found[key].a = _outcomes(counts)
    for key, counts in zip(b.pairs, b.outcomes.tolist(), strict=True):
        found[key].b = _outcomes(counts)
    differences = Differences(compared=len(found), notes=_notes(a, b))
    if _one_by_one(a, b):
        _compare_values(a, b, found, differences, exact)
        differences.order = _order(a, b)
    differences.msrs = [one for one in found.values() if one]
    differences.msrs.sort(key=lambda one: (one.index, one.op))
    return differences


def _one_by_one(a: Recorded, b: Recorded) -> bool:
    return a.grade == b.grade != Grade.COUNT


def _notes(a: Recorded, b: Recorded) -> list[str]:
    notes = []
    if not _one_by_one(a, b):
        notes.append(f"values and order are not compared: the grades are {a.grade} and {b.grade}")
    for name, one in (("A", a), ("B", b)):
        if len(one.keys) < one.events:
            notes.append(
                f"{name}: values and order are compared up to access {len(one.keys):,} of"
                f" {one.events:,}"
            )
        if one.left_out:
            accesses = counted(one.left_out, "access", "accesses")
            notes.append(f"{name}: {accesses} to yet more MSRs are not compared")
        if one.dropped:
            accesses = counted(one.dropped, "access", "accesses")
            notes.append(f"{name}: {accesses} came too fast to be recorded, and were only counted")
    return notes


def _pair(key: int) -> tuple[int, str]:
    return key & 0xFFFFFFFF, OPS[key >> OP_SHIFT & 1]


def _who(key: int) -> tuple[int, int]:
    return key >> WHO_SHIFT + 16, key >> WHO_SHIFT & 0xFFFF


def _outcomes(counts: list[int]) -> dict[str, int]:
    return {name: count for name, count in zip(OUTCOMES, counts, strict=True) if count}


class _Sequences:
    """The accesses of a trace, sorted by key; those with the same key are a sequence."""

    def __init__(self, trace: Recorded) -> None:
        order = np.argsort(trace.keys, kind="stable")
        keys = trace.keys[order]
        self.values, self.codes = trace.values[order], trace.codes[order]
        self.keys, self.starts, self.lengths = np.unique(
            keys, return_index=True, return_counts=True
        )
        numbers = np.repeat(np.arange(len(self.keys)), self.lengths)
        same = numbers[1:] == numbers[:-1]
        size = len(self.keys)
        falls = same & (self.values[1:] < self.values[:-1])
        rises = same & (self.values[1:] > self.values[:-1])
        self.rises = (np.bincount(numbers[1:][falls], minlength=size) == 0) & (
            np.bincount(numbers[1:][rises], minlength=size) >= _RISES
        )

    def answer(self, at: int) -> Answer:
        code = int(self.codes[at])
        value = int(self.values[at]) if code & _HAS_VALUE else None
        return Answer(OUTCOMES[code & 3], value)


def _compare_values(
    a: Recorded,
    b: Recorded,
    found: dict[int, MsrDifference],
    differences: Differences,
    exact: bool,
) -> None:
    ours, theirs = _Sequences(a), _Sequences(b)
    _, in_a, in_b = np.intersect1d(ours.keys, theirs.keys, True, True)
    lengths = np.minimum(ours.lengths[in_a], theirs.lengths[in_b])
    ends = np.cumsum(lengths)
    steps = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    at_a = np.repeat(ours.starts[in_a], lengths) + steps
    at_b = np.repeat(theirs.starts[in_b], lengths) + steps
    codes = ours.codes[at_a] != theirs.codes[at_b]
    values = ours.values[at_a] != theirs.values[at_b]
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    others = np.bincount(numbers[codes], minlength=len(lengths)) > 0
    rising = ours.rises[in_a] & theirs.rises[in_b] & ~others
    for number, where in zip(*_firsts(numbers, codes | values), strict=True):
        key = int(ours.keys[in_a[number]])
        one = found.get(key & (1 << WHO_SHIFT) - 1)
        if one is None:
            continue
        if rising[number] and not exact:
            differences.rising.append((one.index, one.op))
        elif one.first is None:
            ends_a, ends_b = ours.answer(int(at_a[where])), theirs.answer(int(at_b[where]))
            one.first = FirstDifference(*_who(key), int(steps[where]) + 1, ends_a, ends_b)
    differences.rising = sorted(set(differences.rising))
    _find_moved(ours, theirs, found)


def _firsts(numbers: _Array, differ: _Array) -> tuple[list[int], list[int]]:
    """Return the sequences that differ, and where in the comparison each one does first."""
    where = np.flatnonzero(differ)
    found, first = np.unique(numbers[where], return_index=True)
    return found.tolist(), where[first].tolist()


def _find_moved(ours: _Sequences, theirs: _Sequences, found: dict[int, MsrDifference]) -> None:
    a = dict(zip(ours.keys.tolist(), ours.lengths.tolist(), strict=True))
    b = dict(zip(theirs.keys.tolist(), theirs.lengths.tolist(), strict=True))
    for key in a.keys() | b.keys():
        one = found.get(key & (1 << WHO_SHIFT) - 1)
        if one is not None and one.a == one.b and a.get(key) != b.get(key):
            one.moved = True


def _order(a: Recorded, b: Recorded) -> list[OrderDifference]:
    ours, theirs = _by_vcpu(a.keys), _by_vcpu(b.keys)
    nothing = np.zeros(0, np.uint64)
    found = []
    for who in sorted({*ours, *theirs}):
        one, other = ours.get(who, nothing), theirs.get(who, nothing)
        shorter = min(len(one), len(other))
        differ = np.flatnonzero(one[:shorter] != other[:shorter])
        at = int(differ[0]) if len(differ) else shorter
        if len(differ) or len(one) != len(other):
            vm, vcpu = who >> 16, who & 0xFFFF
            found.append(OrderDifference(vm, vcpu, at + 1, _access(one, at), _access(other, at)))
    return found


def _by_vcpu(keys: _Array) -> dict[int, _Array]:
    """Return the accesses of each vCPU, in order."""
    whos = keys >> np.uint64(WHO_SHIFT)
    order = np.argsort(whos, kind="stable")
    names, starts = np.unique(whos[order], return_index=True)
    parts = np.split(keys[order], starts[1:]) if len(names) else []
    return dict(zip(names.tolist(), parts, strict=True))


def _access(keys: _Array, at: int) -> tuple[str, int] | None:
    if at >= len(keys):
        return None
    index, op = _pair(int(keys[at]))
    return op, index
