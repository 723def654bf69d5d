# SPDX-License-Identifier: Apache-2.0
"""
What was seen of each MSR
-------------------------

Reads traces and sorts their accesses by MSR. A guest may have accessed any number of MSRs, and a
trace may be of any length, so what is kept is limited. What is beyond the limits is only counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from kvmsr.errors import TraceError
from kvmsr.policy import Op, Reason
from kvmsr.symbols import Symbols
from kvmsr.text import counted
from kvmsr.trace.analysis.paths import Paths, asker
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Grade, Trace
from kvmsr.trace.file.columns import RIP

__all__ = ("History", "Material", "Seen", "Stream", "read_traces")

_MAX_MSRS: Final = 4096
_MAX_KEPT: Final = 1 << 21
_MAX_KEPT_OF_ONE: Final = 1 << 16
_MAX_WAYS: Final = 64
_MAX_PATHS: Final = 1 << 14

_KEPT: Final = np.dtype(
    [
        ("time_ns", "u8"),
        ("guest_ns", "u8"),
        ("value", "u8"),
        ("vcpu", "u2"),
        ("op", "u1"),
        ("reason", "u1"),
        ("outcome", "u1"),
    ]
)
_OPS: Final = tuple(map(Op, OPS))
_REASONS: Final = tuple(map(Reason, REASONS))

_Array = np.ndarray[Any, Any]
_Vm = tuple[int, int, int]
"""The number of a trace, and of a process and a VM in it."""


class Seen(NamedTuple):
    """
    An access that was recorded.

    :ivar vcpu: number of the vCPU.
    :ivar op: read or write.
    :ivar value: read or written; 0 for a read that returned no value.
    :ivar outcome: one of :data:`~kvmsr.trace.file.OUTCOMES`.
    :ivar reason: why KVM gave it up.
    :ivar time: the guest's time, in nanoseconds since it began.
    """

    vcpu: int
    op: Op
    value: int
    outcome: str
    reason: Reason
    time: int


class Stream(NamedTuple):
    """
    The accesses to one MSR in one VM, in order.

    :ivar trace: the number of the trace.
    :ivar seen: the accesses.
    """

    trace: int
    seen: list[Seen]


@dataclass(slots=True)
class History:
    """
    What was recorded about one MSR.

    :ivar index: the MSR.
    :ivar counts: number of accesses, by direction.
    :ivar faults: number of accesses that faulted.
    :ivar vcpus: the vCPUs that accessed it.
    :ivar ways: how often the guest came on each path to it, by the path's number, if that was
        recorded.
    :ivar left: number of accesses that were counted only, and of which nothing can be learned.
    :ivar passed: number of accesses that were passed on to KVM.
    """

    index: int
    counts: dict[Op, int] = field(default_factory=lambda: dict.fromkeys(Op, 0))
    faults: int = 0
    vcpus: set[int] = field(default_factory=set)
    ways: Counter[int] = field(default_factory=Counter)
    left: int = 0
    passed: int = 0
    _parts: dict[_Vm, list[_Array]] = field(default_factory=dict)
    _kept: int = 0

    def add(self, vm: _Vm, rows: _Array, room: int, ways: _Array) -> int:
        """
        Add rows of a trace, and return how many were kept.

        :param room: how many may be kept.
        :param ways: the numbers of their paths, for those that have one.
        """
        counts = rows["count"].astype(np.int64)
        for number, op in enumerate(_OPS):
            self.counts[op] += int(counts[rows["op"] == number].sum())
        self.faults += int(counts[rows["outcome"] == OUTCOMES.index("fault")].sum())
        self.vcpus.update(map(int, np.unique(rows["vcpu"])))
        for way, count in zip(*np.unique(ways, return_counts=True), strict=True):
            if way in self.ways or len(self.ways) < _MAX_WAYS:
                self.ways[int(way)] += int(count)
        exact = rows[rows["has"] & LATENCY != 0]
        kept = exact[: max(min(room, _MAX_KEPT_OF_ONE - self._kept), 0)]
        self.left += int(counts.sum()) - len(kept)
        if len(kept):
            slim = np.zeros(len(kept), _KEPT)
            for name in _KEPT.names or ():
                slim[name] = kept[name]
            self._parts.setdefault(vm, []).append(slim)
            self._kept += len(kept)
        return len(kept)

    def streams(self) -> list[Stream]:
        """Return the accesses that were kept, by VM."""
        found = []
        for (trace, _, _), parts in sorted(self._parts.items()):
            rows = np.concatenate(parts)
            rows = rows[np.argsort(rows["time_ns"], kind="stable")]
            columns = ("vcpu", "op", "value", "outcome", "reason", "guest_ns")
            seen = [
                Seen(vcpu, _OPS[op], value, OUTCOMES[outcome], _REASONS[reason], time)
                for vcpu, op, value, outcome, reason, time in zip(
                    *(rows[name].tolist() for name in columns), strict=True
                )
            ]
            found.append(Stream(trace, seen))
        return found


@dataclass(slots=True)
class Material:
    """
    What traces say.

    :ivar paths: the traces' files.
    :ivar heads: a line about each trace.
    :ivar paths_taken: the paths on which guests came to their accesses.
    :ivar histories: by MSR.
    :ivar exact: whether the traces have every access.
    :ivar defaults: what the policy's defaults did, by their names.
    :ivar notes: lines that the user should read.
    """

    paths: list[Path]
    heads: list[str] = field(default_factory=list)
    paths_taken: Paths = field(default_factory=lambda: Paths(_MAX_PATHS))
    histories: dict[int, History] = field(default_factory=dict)
    exact: bool = True
    defaults: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _kept: int = 0
    _others: int = 0

    def add(self, number: int, trace: Trace) -> None:
        """Read a trace."""
        head, total, left = trace.head, 0, 0
        if head.grade is Grade.COUNT:
            raise TraceError(
                f"{trace.path}: nothing can be learned from a trace of grade count, which has no"
                " values; record with --trace-grade all"
            )
        for rows in trace.batches():
            total += int(rows["count"].sum())
            left += int(rows["count"][rows["has"] & LATENCY == 0].sum())
            self._take(number, trace, rows)
        what = f"{head.command} {head.image} on {head.backend}".strip()
        self.heads.append(f"{trace.path}: {what}, {counted(total, 'access', 'accesses')}")
        if trace.cut:
            self.notes.append(f"{trace.path}: {trace.cut}; it is used up to there")
        if head.grade is not Grade.ALL:
            self.exact = False
            self.notes.append(
                f"{trace.path}: it was recorded with grade {head.grade}: how a register behaves"
                " between the accesses that it has is not known"
            )
        elif left:
            accesses = counted(left, "access was", "accesses were")
            self.notes.append(f"{trace.path}: {accesses} only counted, without their values")
        if not total:
            self.notes.append(f"{trace.path}: there is no access in it")

    def _take(self, number: int, trace: Trace, rows: _Array) -> None:
        for name in ("unknown", "invalid"):
            if f"defaults.{name}" in trace.rules:
                rule = trace.rules.index(f"defaults.{name}")
                self._note_default(name, rows[rows["rule"] == rule])
        passed = np.zeros(len(rows), bool)
        if "kernel" in trace.rules:
            passed = rows["rule"] == trace.rules.index("kernel")
        rows, passed = (part[np.argsort(rows["index"], kind="stable")] for part in (rows, passed))
        starts = np.flatnonzero(np.diff(rows["index"], prepend=rows["index"][:1])).tolist()
        for first, end in zip([0, *starts], [*starts, len(rows)], strict=True):
            self._of_one(number, rows[first:end], passed[first:end])

    def _note_default(self, name: str, rows: _Array) -> None:
        """Note which of a default's actions gives these outcomes."""
        outcomes = {OUTCOMES[number] for number in np.unique(rows["outcome"])}
        found = {self.defaults.get(name, "")} | (outcomes & {"fault", "stop"})
        if rows["value"][rows["outcome"] == OUTCOMES.index("value")].any():
            found.add("shadow")
        if outcomes:
            found.add("ignore")
        for action in ("ignore", "shadow", "stop", "fault"):
            if action in found:
                self.defaults[name] = action

    def _of_one(self, number: int, rows: _Array, passed: _Array) -> None:
        index = int(rows["index"][0])
        history = self.histories.get(index)
        if history is None:
            if len(self.histories) >= _MAX_MSRS:
                self._others += int(rows["count"].sum())
                return
            history = self.histories[index] = History(index)
        history.passed += int(rows["count"][passed].sum())
        rows = rows[~passed]
        vms = rows["pid"].astype(np.uint64) << np.uint64(16) | rows["vm"]
        for vm in np.unique(vms):
            key = (number, int(vm) >> 16, int(vm) & 0xFFFF)
            mine = rows[vms == vm]
            ways = self.paths_taken.numbers(mine[mine["has"] & RIP != 0])
            self._kept += history.add(key, mine, _MAX_KEPT - self._kept, ways)

    def who(self, way: int, functions: Symbols | None) -> str:
        """Return who came on a path: the function that asked, or else the address of the access."""
        known = self.paths_taken.known
        if way >= len(known):
            return "others"
        where = known[way]
        if functions is None:
            return asker(where, None) or f"{where.rip:#x}"
        return functions.asker(where.rip, where.callers) or functions.chain(where.rip)

    def end(self) -> None:
        """Say what found no room."""
        short = sum(bool(history.left) for history in self.histories.values())
        if self._others:
            accesses = counted(self._others, "access", "accesses")
            self.notes.append(
                f"{accesses} to other MSRs than the first {_MAX_MSRS:,} were not used"
            )
        if short and self._kept >= min(_MAX_KEPT, _MAX_KEPT_OF_ONE):
            self.notes.append(
                f"of {counted(short, 'MSR')} with many accesses, only the first were used"
            )


def read_traces(paths: Sequence[Path]) -> Material:
    """
    Read traces.

    :raises TraceError: if one cannot be read, or nothing can be learned from it.
    """
    material = Material(list(paths))
    for number, path in enumerate(paths):
        with Trace(path) as trace:
            material.add(number, trace)
    material.end()
    return material
