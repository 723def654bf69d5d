# SPDX-License-Identifier: Apache-2.0
"""
Collecting
----------

Reads a trace once, and keeps what a report shows of it: sums, and a sample of the accesses. Memory
is bounded, whatever the trace's length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvmsr.policy import Where
from kvmsr.symbols import Symbols
from kvmsr.trace.analysis.latency import Latencies
from kvmsr.trace.analysis.paths import Paths
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Trace
from kvmsr.trace.file.columns import RIP, VALUE
from kvmsr.trace.report.sample import Sample
from kvmsr.trace.summary import MAX_ROWS, IndexCount

__all__ = ("BINS_PER_OCTAVE", "Collected", "Kind", "collect")

BINS_PER_OCTAVE: Final = 4
"""The number of the latency histogram's bins between a latency and its double."""

_BINS: Final = 32 * BINS_PER_OCTAVE + 1
_PART: Final = 1 << 16  # rows: 48 bits hold three numbers below that
_MAX_MSRS: Final = 500
_MAX_CALLERS: Final = 32
_MAX_PATHS: Final = 1 << 14
_LAST_NS: Final = (1 << 64) - 1
_DEFAULTS: Final = frozenset(f"defaults.{name}" for name in ("unknown", "invalid", "on_error"))

_Array = np.ndarray[Any, Any]
_Key = tuple[int, int, int, int, int]


@dataclass(slots=True)
class Kind:
    """
    Accesses of one kind: to one MSR, in one direction, for one reason, by one rule, with one
    outcome.

    :ivar count: the number of accesses.
    :ivar only_counted: how many of them were not recorded one by one.
    :ivar first: the first value, or None.
    :ivar last: the last value, or None.
    :ivar callers: the number of accesses by the path on which the guest came to them; not more
        than 32.
    :ivar unknown_callers: the number of accesses whose path is not among them.
    """

    index: int
    op: str
    reason: str
    rule: str
    outcome: str
    count: int = 0
    only_counted: int = 0
    first: int | None = None
    last: int | None = None
    first_ns: int = _LAST_NS
    last_ns: int = 0
    callers: dict[Where, int] = field(default_factory=dict)
    unknown_callers: int = 0

    @property
    def by_default(self) -> bool:
        """Return whether no rule decided, but one of the policy's defaults."""
        return self.rule in _DEFAULTS

    def add_callers(self, where: Where | None, count: int) -> None:
        """Count accesses by their path."""
        if where is None or (where not in self.callers and len(self.callers) >= _MAX_CALLERS):
            self.unknown_callers += count
        else:
            self.callers[where] = self.callers.get(where, 0) + count


class Collected:
    """
    What a report shows of a trace.

    :param functions: the guest's functions, to name them.

    :ivar head: what the trace says about its run.
    :ivar rules: the rules, by number.
    :ivar sample: the accesses to show one by one.
    :ivar accesses: the number of accesses.
    :ivar only_counted: how many of them were not recorded one by one.
    :ivar latencies: the number of accesses in each bin of the latency histogram.
    :ivar has_rip: whether any RIP was recorded.
    :ivar paths: the paths on which the guest came to its accesses.
    :ivar others: the accesses to MSRs for which there was no room, by direction.
    :ivar other_msrs: the distinct MSRs among them.
    :ivar first_ns: the time of the first access.
    :ivar last_ns: the time of the last one.
    :ivar cut: why the trace ends early, or "".
    """

    def __init__(self, trace: Trace, functions: Symbols | None = None) -> None:
        self.path = trace.path
        self.head = trace.head
        self.rules: list[str] = trace.rules
        self.sample = Sample(trace.callers)
        self.accesses = self.only_counted = 0
        self.latencies = np.zeros(_BINS, np.int64)
        self._exact = Latencies(1)
        self.has_rip = False
        self.paths = Paths(_MAX_PATHS)
        self._functions = functions
        self.others = {"read": 0, "write": 0}
        self.other_msrs = IndexCount()
        self.first_ns, self.last_ns = _LAST_NS, 0
        self.cut = ""
        self._kinds: dict[_Key, Kind] = {}
        self._msrs: set[int] = set()

    def __iter__(self) -> Iterator[Kind]:
        """Yield the kinds in order of their MSRs, reads before writes."""
        return iter(
            sorted(self._kinds.values(), key=lambda k: (k.index, k.op, k.reason, k.rule, k.outcome))
        )

    def percentiles(self) -> dict[int, int] | None:
        """Return latencies in nanoseconds by per cent, as kvmsr trace summary does."""
        return self._exact.percentiles()

    def place(self) -> None:
        """Find out where the guest's kernel was, to name functions rightly."""
        if self._functions is not None:
            self._functions.find_slide(where.rip for where in self.paths.known)

    def who(self, where: Where) -> str:
        """Return a path in words."""
        if self._functions is None:
            return str(where)
        return self._functions.chain(where.rip, where.callers, where.guesses)

    @property
    def began_ns(self) -> int:
        """Return the time from which the page counts: the run's begin, if that can be."""
        began = self.head.began_ns
        return began if 0 < began <= self.first_ns else self.first_ns

    def add(self, rows: _Array) -> None:
        """Count some rows: at most 65,536."""
        rows = rows[np.argsort(rows["time_ns"], kind="stable")]
        recorded = (rows["has"] & LATENCY) != 0
        counts = rows["count"]
        self.accesses += int(counts.sum(dtype=np.uint64))
        self.only_counted += int(counts[~recorded].sum(dtype=np.uint64))
        self.first_ns = min(self.first_ns, int(rows["time_ns"][0]))
        self.last_ns = max(self.last_ns, int(rows["time_ns"][-1]))
        self.latencies += _histogram(rows["latency_ns"][recorded])
        self._exact.add(np.zeros(int(recorded.sum()), np.int64), rows["latency_ns"][recorded])
        fresh = np.zeros(len(rows), np.bool_)
        indices, at = np.unique(rows["index"], return_index=True)
        for index, place in zip(indices.tolist(), at.tolist(), strict=True):
            if index not in self._msrs and len(self._msrs) < _MAX_MSRS:
                self._msrs.add(index)
                fresh[place] = True
        self.sample.add(rows, fresh)
        self._count(rows, recorded)

    def _count(self, rows: _Array, recorded: _Array) -> None:
        has_rip = (rows["has"] & RIP) != 0
        self.has_rip = self.has_rip or bool(has_rip.any())
        paths = np.full(len(rows), _MAX_PATHS)
        if has_rip.any():
            paths[has_rip] = self.paths.numbers(rows[has_rip])
        kinds, which = _groups(rows, paths)
        counts = _sums(which, rows["count"], len(kinds))
        single = _sums(which, np.where(recorded, rows["count"], 0), len(kinds))
        with_value = np.flatnonzero(rows["has"] & VALUE)
        firsts, lasts = _ends(which, with_value, len(kinds))
        begins, ends = _ends(which, np.arange(len(rows)), len(kinds))
        for number, row in enumerate(kinds):
            kind = self._kind(rows[row])
            count = int(counts[number])
            if kind is None:
                op = OPS[rows["op"][row]]
                self.others[op] += count
                self.other_msrs.add(int(rows["index"][row]))
                continue
            kind.count += count
            kind.only_counted += count - int(single[number])
            path = int(paths[row])
            known = self.paths.known
            kind.add_callers(known[path] if path < len(known) else None, count)
            self._see(kind, rows, firsts[number], lasts[number])
            kind.first_ns = min(kind.first_ns, int(rows["time_ns"][begins[number]]))
            kind.last_ns = max(kind.last_ns, int(rows["time_ns"][ends[number]]))

    def _see(self, kind: Kind, rows: _Array, first: int, last: int) -> None:
        """Take over the first and the last value of a kind; -1 for none."""
        if first < 0:
            return
        if kind.first is None or int(rows["time_ns"][first]) < kind.first_ns:
            kind.first = int(rows["value"][first])
        if kind.last is None or int(rows["time_ns"][last]) >= kind.last_ns:
            kind.last = int(rows["value"][last])

    def _kind(self, row: Any) -> Kind | None:
        """Return the kind that a row belongs to; None if there is no room for it."""
        index, rule = int(row["index"]), int(row["rule"])
        op, reason, outcome = int(row["op"]), int(row["reason"]), int(row["outcome"])
        key = (index, op, reason, rule, outcome)
        kind = self._kinds.get(key)
        if kind is None and index in self._msrs and len(self._kinds) < MAX_ROWS:
            name = self.rules[rule] if rule < len(self.rules) else ""
            kind = Kind(index, OPS[op], REASONS[reason], name, OUTCOMES[outcome])
            self._kinds[key] = kind
        return kind


def collect(
    path: Path,
    step: Callable[[int], None] = lambda rows: None,
    functions: Symbols | None = None,
) -> Collected:
    """
    Read the trace at *path*.

    :param step: called now and then with the number of rows read so far.
    :param functions: the guest's functions, to name them.
    :raises TraceError: if it is not a trace, or is damaged.
    """
    with Trace(path) as trace:
        found = Collected(trace, functions)
        for batch in trace.batches():
            for first in range(0, len(batch), _PART):
                found.add(batch[first : first + _PART])
                step(found.sample.seen)
        found.cut = trace.cut
        found.place()
    return found


def _groups(rows: _Array, paths: _Array) -> tuple[list[int], _Array]:
    """Return a row of each kind with each path, and to which of these each row belongs."""
    key = np.zeros(len(rows), np.uint64)
    for column in (rows["index"], rows["rule"], paths):
        _, numbers = np.unique(column, return_inverse=True)
        key = key << np.uint64(16) | numbers.astype(np.uint64)
    for name, bits in (("op", 1), ("reason", 2), ("outcome", 2)):
        key = key << np.uint64(bits) | rows[name].astype(np.uint64)
    _, at, which = np.unique(key, return_index=True, return_inverse=True)
    return at.tolist(), which


def _sums(which: _Array, numbers: _Array, size: int) -> _Array:
    sums = np.zeros(size, np.uint64)
    np.add.at(sums, which, numbers.astype(np.uint64))
    return sums


def _ends(which: _Array, rows: _Array, size: int) -> tuple[_Array, _Array]:
    """Return the first and the last of *rows* in each group; -1 where there is none."""
    first, last = np.full(size, -1), np.full(size, -1)
    first[which[rows[::-1]]] = rows[::-1]
    last[which[rows]] = rows
    return first, last


def _histogram(latencies: _Array) -> _Array:
    bins = np.log2(np.maximum(latencies, 1).astype(np.float64)) * BINS_PER_OCTAVE
    return np.bincount(bins.astype(np.int64), minlength=_BINS)
