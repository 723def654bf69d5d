# SPDX-License-Identifier: Apache-2.0
"""
Replay
------

Give a guest the answers that were recorded, and compare runs access by access.

Accesses are in order by vCPU, MSR and direction. Nothing is said about the order of accesses of
different vCPUs, which differs from run to run.
"""

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from kvmsr.errors import TraceError
from kvmsr.msr import catalog, enumerated
from kvmsr.policy import Access, Defaults, Fault, Op, Policy, Python, Reason, Rule
from kvmsr.policy.selector import MAX_INDEX
from kvmsr.text import counted
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Grade, Head, Trace

__all__ = ("Divergence", "Recorded", "Replay", "differences")

_VALUE, _DONE, _FAULT, _STOP = range(4)
assert OUTCOMES == ("value", "done", "fault", "stop")
_FILTER: Final = REASONS.index(Reason.FILTER)
_MOST_KEPT: Final = 1000
_GIVEN_UP: Final = ("unknown", "invalid")
_RULE: Final = "recorded"

_Array = np.ndarray[Any, Any]
_Key = tuple[int, int, int]
"""The number of a vCPU, an MSR, and a direction's number in OPS."""


class Divergence(NamedTuple):
    """
    A difference from what was recorded.

    :ivar vcpu: number of the vCPU.
    :ivar op: read or write.
    :ivar index: the MSR.
    :ivar number: which access it was, from 1, of this vCPU to this MSR in this direction.
    :ivar recorded: what was recorded, in words.
    :ivar here: what is different, in words.
    """

    vcpu: int
    op: Op
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is not needed here
    number: int
    recorded: str
    here: str

    def __str__(self) -> str:
        name = catalog().name(self.index)
        msr = f"{self.index:#x}{f' ({name})' if name else ''}"
        return (
            f"vCPU {self.vcpu}: {self.op} {self.number:,} of MSR {msr}: recorded: {self.recorded};"
            f" here: {self.here}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it in its JSON form."""
        return {**self._asdict(), "op": str(self.op), "index": f"{self.index:#x}"}


class Recorded:
    """
    The accesses of one VM, in order by vCPU, MSR and direction.

    Accesses that were passed on to KVM are left out: KVM goes on answering them.

    :param path: the trace.
    :ivar notes: lines that the user should read.
    :ivar seen: the features that consist of MSRs and that the guest's CPUID had; None if its CPUID
        is not known.
    :raises TraceError: if it cannot be read, or does not have every access.
    """

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self.values: dict[_Key, _Array] = {}
        self.outcomes: dict[_Key, _Array] = {}
        self._deflected: set[tuple[int, int]] = set()
        self._vm: int | None = None
        parts: dict[_Key, list[_Array]] = {}
        with Trace(path) as trace:
            if trace.head.grade is not Grade.ALL:
                raise TraceError(
                    f"{path}: it was recorded with grade {trace.head.grade}, so it does not have"
                    " every answer; record with --trace-grade all"
                )
            left = others = 0
            for rows in trace.batches():
                rows, fewer = self._of_vm(rows)
                others += fewer
                is_exact = rows["has"] & LATENCY != 0
                left += int(rows["count"][~is_exact].sum())
                if "kernel" in trace.rules:
                    is_exact &= rows["rule"] != trace.rules.index("kernel")
                self._take(rows[is_exact], parts)
            self.seen = _seen(trace.head)
            if trace.cut:
                self.notes.append(f"{path}: {trace.cut}; it is used up to there")
        if left:
            self.notes.append(
                f"{path}: {counted(left, 'access', 'accesses')} came too fast to be recorded"
            )
        if others:
            accesses = counted(others, "access", "accesses")
            self.notes.append(f"{path}: {accesses} of other VMs than the first are not used")
        for key, found in parts.items():
            whole = np.concatenate(found)
            self.values[key] = whole["value"].copy()
            self.outcomes[key] = whole["outcome"].copy()

    def _of_vm(self, rows: _Array) -> tuple[_Array, int]:
        """Return the rows of the first VM, and the number of accesses of others."""
        vms = rows["pid"].astype(np.int64) << 16 | rows["vm"]
        if self._vm is None and len(rows):
            self._vm = int(vms[0])
        own = vms == self._vm
        return rows[own], int(rows["count"][~own].sum())

    def _take(self, rows: _Array, parts: dict[_Key, list[_Array]]) -> None:
        order = np.lexsort((rows["op"], rows["index"], rows["vcpu"]))
        rows = rows[order]
        names = ("vcpu", "index", "op")
        changes = np.zeros(len(rows), bool)
        for name in names:
            changes[1:] |= rows[name][1:] != rows[name][:-1]
        starts = [0, *np.flatnonzero(changes).tolist(), len(rows)]
        for first, end in pairwise(starts):
            if first < end:
                part = rows[first:end]
                vcpu, index, op = (int(part[name][0]) for name in names)
                parts.setdefault((vcpu, index, op), []).append(part[["value", "outcome"]].copy())
                if (part["reason"] == _FILTER).any():
                    self._deflected.add((index, op))

    def __len__(self) -> int:
        return sum(map(len, self.values.values()))

    def vcpus(self) -> int:
        """Return the number of vCPUs that it takes."""
        return max((vcpu for vcpu, _, _ in self.values), default=0) + 1

    def words(self, key: _Key, number: int) -> str:
        """Return in words what access *number*, from 0, was and became."""
        return said(key, int(self.values[key][number]), int(self.outcomes[key][number]))

    def policy(self, answer: Callable[[Access], int | None], name: str) -> Policy:
        """
        Return a policy under which *answer* gets each access that came to user space.

        :param answer: answers accesses, as a policy's Python does.
        :param name: what messages call it.
        """
        act = Python(answer, name)
        # Features whose MSRs the policy answered then are answered now: the guest looks for them.
        rules = [
            Rule(one.msrs, act, when={"reason": _GIVEN_UP}, log="never", where=_RULE)
            for one in enumerated()
            if one.name in (self.seen or ())
        ]
        for op, actions in enumerate(({"read": act}, {"write": act})):
            indices = sorted(index for index, own in self._deflected if own == op)
            if indices:
                rules.append(
                    Rule(
                        indices, actions.get("read"), actions.get("write"), log="never", where=_RULE
                    )
                )
        rules.append(
            Rule([(0, MAX_INDEX)], act, act, when={"reason": _GIVEN_UP}, log="never", where=_RULE)
        )
        return Policy(rules, Defaults(), name=name)


def _seen(head: Head) -> frozenset[str] | None:
    """Return which features that consist of MSRs the guest's CPUID had; None if it is not known."""
    registers = {
        (function, index, name): value
        for function, index, *values in head.cpuid
        for name, value in zip(("eax", "ebx", "ecx", "edx"), values, strict=True)
    }
    return (
        frozenset(
            one.name
            for one in enumerated()
            for bit in [one.feature]
            if registers.get((bit.function, bit.index, bit.register), 0) >> bit.bit & 1
        )
        if registers
        else None
    )


def said(key: _Key, value: int, outcome: int) -> str:
    """Return in words what an access was and became."""
    is_read = OPS[key[2]] == Op.READ
    became = {_VALUE: f"{value:#x}", _DONE: "done", _FAULT: "#GP", _STOP: "the end of the run"}
    return became[outcome] if is_read else f"{value:#x}, {became[outcome]}"


class Replay:
    """
    Answers accesses as they were recorded. The threads of several vCPUs may call it at once.

    At a divergence the guest gets what was recorded next, or, if there is nothing left, what was
    recorded last; and #GP for an access that was never recorded.

    :param recorded: what was recorded.
    :param seen: called with each divergence, in the thread of its vCPU.
    :param stop: called when the recorded run was stopped at an access.
    :ivar divergences: the first divergences.
    :ivar diverged: number of divergences.
    :ivar answered: number of accesses that were answered.
    """

    def __init__(
        self,
        recorded: Recorded,
        seen: Callable[[Divergence], None] = lambda found: None,
        stop: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.divergences: list[Divergence] = []
        self.diverged = self.answered = 0
        self._recorded = recorded
        self._seen = seen
        self._stop = stop
        self._next: dict[_Key, int] = {}
        self._counting = threading.Lock()

    def __call__(self, access: Access) -> int | None:
        """Answer an access; see :data:`~kvmsr.policy.Handler`."""
        key = (access.vcpu, access.index, OPS.index(access.op))
        with self._counting:
            number = self._next.get(key, 0)
            self._next[key] = number + 1
            self.answered += 1
        outcomes = self._recorded.outcomes.get(key)
        if outcomes is None:
            self._diverge(access, number, "no such access", "#GP")
            raise Fault
        last = len(outcomes) - 1
        value = int(self._recorded.values[key][min(number, last)])
        outcome = int(outcomes[min(number, last)])
        if number > last:
            self._diverge(access, number, f"{last + 1:,} in all", said(key, value, outcome))
        elif access.op == Op.WRITE and access.value != value:
            here = said(key, access.value, outcome)
            self._diverge(access, number, self._recorded.words(key, number), here)
        if outcome == _STOP:
            self._stop(f"the recorded run was stopped at this {access}")
        if outcome not in (_VALUE, _DONE):
            raise Fault
        return value if access.op == Op.READ else None

    def _diverge(self, access: Access, number: int, recorded: str, here: str) -> None:
        found = Divergence(access.vcpu, access.op, access.index, number + 1, recorded, here)
        with self._counting:
            self.diverged += 1
            if len(self.divergences) < _MOST_KEPT:
                self.divergences.append(found)
        self._seen(found)

    @property
    def left(self) -> int:
        """Return the number of recorded accesses that have not happened."""
        return sum(
            max(len(found) - self._next.get(key, 0), 0)
            for key, found in self._recorded.outcomes.items()
        )


def differences(
    recorded: Recorded, here: Recorded, counters: frozenset[int] = frozenset()
) -> Iterator[Divergence]:
    """
    Yield what came out differently in another run, in order of vCPU, MSR and direction.

    :param recorded: the first run.
    :param here: the other run.
    :param counters: MSRs of which it does not matter which value was read.
    """
    for key in sorted({*recorded.outcomes, *here.outcomes}):
        vcpu, index, op = key
        sides = recorded, here
        counts = [len(side.outcomes.get(key, ())) for side in sides]
        both = min(counts)
        for number in _differing(sides, key, both, counters) if both else ():
            words = [side.words(key, number) for side in sides]
            yield Divergence(vcpu, Op(OPS[op]), index, number + 1, *words)
        if counts[0] != counts[1]:
            words = [
                side.words(key, both) if count > both else "no such access"
                for side, count in zip(sides, counts, strict=True)
            ]
            yield Divergence(vcpu, Op(OPS[op]), index, both + 1, *words)


def _differing(
    sides: tuple[Recorded, Recorded], key: _Key, count: int, counters: frozenset[int]
) -> list[int]:
    first, second = (side.outcomes[key][:count] for side in sides)
    found = first != second
    if not (key[1] in counters and OPS[key[2]] == Op.READ):
        one, other = (side.values[key][:count] for side in sides)
        found |= one != other
    return [int(number) for number in np.flatnonzero(found)]
