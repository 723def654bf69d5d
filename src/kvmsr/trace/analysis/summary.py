# SPDX-License-Identifier: Apache-2.0
"""
The summary of a trace
----------------------

A row for each MSR, direction, reason and rule, and on request for each vCPU. It is made batch by
batch, so that neither time for an access nor memory depends on the length of the trace.

The guest has chosen the MSRs, so the number of rows is limited. Accesses that find no row are
counted together.
"""

from dataclasses import asdict
from typing import Any, Final

import numpy as np

from kvmsr.policy import Where
from kvmsr.symbols import Symbols
from kvmsr.text import counted
from kvmsr.trace.analysis.latency import Latencies
from kvmsr.trace.analysis.numbering import Numbering
from kvmsr.trace.analysis.paths import Paths, asker
from kvmsr.trace.analysis.places import Places
from kvmsr.trace.analysis.rows import Moment, TraceRow, named
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Grade, Head, Trace
from kvmsr.trace.file.columns import RIP, VALUE
from kvmsr.trace.summary import MAX_ROWS, IndexCount

__all__ = ("TraceSummary", "summarise")

_Array = np.ndarray[Any, Any]

_MAX_KINDS: Final = 1 << 16
"""The limit of combinations of rule, reason and direction, and of vCPUs."""
_VCPU_SHIFT: Final = np.uint64(35)  # above a rule's number, the reason and the direction
_PATHS: Final = 4
"""How many paths a row shows."""

_Found = dict[int, list[tuple[Where, int]]]


class TraceSummary:
    """
    The summary of one trace.

    :param by_vcpu: whether each vCPU has rows of its own.
    :param max_rows: number of rows to keep.
    :ivar head: what was recorded.
    :ivar cut: why the trace ends early, or "".
    :ivar events: the number of rows of the file.
    :ivar other_msrs: the distinct MSRs that found no row.
    :ivar paths: the paths on which the guest came to its accesses.
    """

    def __init__(self, head: Head, *, by_vcpu: bool = False, max_rows: int = MAX_ROWS) -> None:
        self.head = head
        self.cut = ""
        self.events = 0
        self.other_msrs = IndexCount()
        self._by_vcpu = by_vcpu
        self._max_rows = max_rows
        self._rules: list[str] = []
        self._vcpus = Numbering(_MAX_KINDS)
        self._kinds = Numbering(_MAX_KINDS)
        self._keys = Numbering(max_rows)
        rows = max_rows + len(OPS)  # one more for each direction, for what finds no row
        self._outcomes = np.zeros((rows, len(OUTCOMES)), np.int64)
        self._counted = np.zeros(rows, np.int64)
        self._first = Places(rows, later=False)
        self._last = Places(rows, later=True)
        self._first_value = Places(rows, later=False)
        self._last_value = Places(rows, later=True)
        self._latencies = Latencies(rows)
        self.paths = Paths(_MAX_KINDS)
        self._by_path = Numbering(_MAX_KINDS)
        self._calls = Numbering(_MAX_KINDS)
        self._call_counts = np.zeros(_MAX_KINDS + 1, np.int64)

    def add(self, events: _Array, rules: list[str]) -> None:
        """
        Count *events*, an array of :data:`~kvmsr.trace.file.EVENT`.

        :param rules: the trace's rules so far.
        """
        self._rules = rules
        self.events += len(events)
        times = events["time_ns"]
        if bool((times[1:] < times[:-1]).any()):  # batches of several vCPUs
            events = events[np.argsort(times, kind="stable")]
        has_rip = events["has"] & RIP != 0
        paths = np.full(len(events), _MAX_KINDS)
        if has_rip.any():
            paths[has_rip] = self.paths.numbers(events[has_rip])
        rows, counts = self._rows(events, paths), events["count"].astype(np.int64)
        np.add.at(self._outcomes.reshape(-1), rows * len(OUTCOMES) + events["outcome"], counts)
        everything = np.arange(len(events))
        self._first.add(rows, events, everything)
        self._last.add(rows, events, everything)
        valued = np.flatnonzero(events["has"] & VALUE)
        self._first_value.add(rows, events, valued)
        self._last_value.add(rows, events, valued)
        timed = events["has"] & LATENCY != 0
        self._latencies.add(rows[timed], events["latency_ns"][timed])
        if not timed.all():
            np.add.at(self._counted, rows[~timed], counts[~timed])
        if has_rip.any():
            pairs = rows[has_rip].astype(np.uint64) << np.uint64(32)
            calls = self._calls.numbers(pairs | paths[has_rip].astype(np.uint64))
            np.add.at(self._call_counts, calls, counts[has_rip])

    def _rows(self, events: _Array, paths: _Array) -> _Array:
        """Return the number of each event's row."""
        kinds = (
            events["rule"].astype(np.uint64) << np.uint64(3)
            | events["reason"].astype(np.uint64) << np.uint64(1)
            | events["op"]
        )
        lost = np.zeros(len(events), np.bool_)
        if self._by_vcpu:
            vcpus = self._vcpus.numbers(
                events["vm"].astype(np.uint64) << np.uint64(16) | events["vcpu"]
            )
            lost |= vcpus == _MAX_KINDS
            kinds |= vcpus.astype(np.uint64) << _VCPU_SHIFT
        numbers = self._kinds.numbers(kinds)
        lost |= numbers == _MAX_KINDS
        if "callers" in (events.dtype.names or ()):
            pairs = numbers.astype(np.uint64) << np.uint64(32) | paths.astype(np.uint64)
            numbers = self._by_path.numbers(pairs)
            lost |= numbers == _MAX_KINDS
        keys = numbers.astype(np.uint64) << np.uint64(32) | events["index"]
        rows = np.full(len(events), self._max_rows)
        rows[~lost] = self._keys.numbers(keys[~lost])
        rest = rows == self._max_rows
        if rest.any():
            rows[rest] += events["op"][rest]
            for index in np.unique(events["index"][rest]).tolist():
                self.other_msrs.add(index)
        return rows

    def rows(self, functions: Symbols | None = None) -> list[TraceRow]:
        """
        Return the rows in order of their MSRs, reads before writes, split by who asked.

        :param functions: the guest's functions, to say who that was.
        """
        paths, groups = self._paths_of_rows(), dict[tuple[int, int, str], list[int]]()
        for number, key in enumerate(self._keys.keys):
            kind, who = key >> 32, ""
            if self._by_path.keys:
                pair = self._by_path.keys[kind]
                kind, path = pair >> 32, pair & 0xFFFFFFFF
                if path < len(self.paths.known):
                    who = asker(self.paths.known[path], functions)
            groups.setdefault((kind, key & 0xFFFFFFFF, who), []).append(number)
        found = [self._row(numbers, *group, paths) for group, numbers in groups.items()]
        return sorted(
            found,
            key=lambda r: (r.index, r.op, r.vm or 0, r.vcpu or 0, r.reason, r.rule, r.asker),
        )

    def others(self) -> list[TraceRow]:
        """Return, for each direction, the accesses that found no row, if there are any."""
        found = []
        for number, op in enumerate(OPS, self._max_rows):
            if self._outcomes[number].any():
                found.append(self._made([number], None, op, "", "", None, "", ()))
        return found

    def _row(
        self, numbers: list[int], kind: int, index: int, asked_by: str, paths: _Found
    ) -> TraceRow:
        kind = self._kinds.keys[kind]
        who = self._vcpus.keys[kind >> int(_VCPU_SHIFT)] if self._by_vcpu else None
        rule = self._rules[kind >> 3 & 0xFFFFFFFF]
        where = [pair for number in numbers for pair in paths.get(number, ())]
        where.sort(key=lambda pair: (-pair[1], pair[0]))
        return self._made(
            numbers, index, OPS[kind & 1], REASONS[kind >> 1 & 3], rule, who, asked_by,
            tuple(where[:_PATHS]),
        )  # fmt: skip

    def _made(
        self,
        numbers: list[int],
        index: int | None,
        op: str,
        reason: str,
        rule: str,
        who: int | None,
        asked_by: str,
        paths: tuple[tuple[Where, int], ...],
    ) -> TraceRow:
        first, last = self._first.best(numbers), self._last.best(numbers)
        first_value, last_value = self._first_value.best(numbers), self._last_value.best(numbers)
        assert first is not None
        assert last is not None
        outcomes = self._outcomes[numbers].sum(axis=0).tolist()
        return TraceRow(
            index=index,
            op=op,
            reason=reason,
            rule=rule,
            vm=None if who is None else who >> 16,
            vcpu=None if who is None else who & 0xFFFF,
            outcomes=dict(zip(OUTCOMES, outcomes, strict=True)),
            counted=int(self._counted[numbers].sum()),
            first=Moment(first[0], first[1]),
            last=Moment(last[0], last[1]),
            first_value=None if first_value is None else first_value[2],
            last_value=None if last_value is None else last_value[2],
            latency=self._latencies.percentiles(numbers),
            asker=asked_by,
            paths=paths,
        )

    def _paths_of_rows(self) -> _Found:
        found: _Found = {}
        for number, key in enumerate(self._calls.keys):
            path = key & 0xFFFFFFFF
            if path < len(self.paths.known):
                pair = (self.paths.known[path], int(self._call_counts[number]))
                found.setdefault(key >> 32, []).append(pair)
        return found

    def totals(self) -> dict[str, int]:
        """Return the number of reads, of writes and of faults."""
        rows = [*self.rows(), *self.others()]
        return {
            **{f"{op}s": sum(row.count for row in rows if row.op == op) for op in OPS},
            "faults": sum(row.faults for row in rows),
        }

    @property
    def counted(self) -> int:
        """Return the number of accesses that were only counted."""
        return int(self._counted.sum())

    @property
    def dropped(self) -> int:
        """Return the number of accesses that came too fast to be recorded, or 0 if unknown."""
        return self.counted if self.head.grade is Grade.ALL else 0

    def rest(self) -> str:
        """Return a line about the accesses that found no row, or "" if there are none."""
        accesses = sum(row.count for row in self.others())
        if not accesses:
            return ""
        least = "" if self.other_msrs.exact else "at least "
        msrs = counted(len(self.other_msrs), "other MSR")
        return f"… and {counted(accesses, 'access', 'accesses')} to {least}{msrs}"

    def as_dict(self, functions: Symbols | None = None) -> dict[str, Any]:
        """Return head, totals and rows in the form of the JSON summary; see :meth:`rows`."""
        head = self.head
        found: dict[str, Any] = {
            "command": head.command,
            "image": head.image,
            "backend": head.backend,
            "policy": head.policy,
            "grade": str(head.grade),
            "began_ns": head.began_ns,
            "kvmsr": head.kvmsr,
            "not_observed": [asdict(one) for one in head.not_observed],
            "cut": self.cut,
            "events": self.events,
            "counted_only": self.counted,
            "dropped": self.dropped,
            "totals": self.totals(),
            "latency_ns": named(self.latency()),
            "accesses": [row.as_dict() for row in self.rows(functions)],
        }
        others = self.others()
        if others:
            found["other"] = {
                "accesses": sum(row.count for row in others),
                "msrs": len(self.other_msrs),
                "exact": self.other_msrs.exact,
            }
        return found

    def latency(self) -> dict[int, int] | None:
        """Return, by percentile, the latency of all accesses; None if it was not recorded."""
        return self._latencies.percentiles()


def summarise(trace: Trace, *, by_vcpu: bool = False, max_rows: int = MAX_ROWS) -> TraceSummary:
    """
    Read a trace to its end, and return its summary.

    :param by_vcpu: whether each vCPU has rows of its own.
    :param max_rows: number of rows to keep.
    :raises TraceError: if the trace is damaged.
    """
    summary = TraceSummary(trace.head, by_vcpu=by_vcpu, max_rows=max_rows)
    for events in trace.batches():
        summary.add(events, trace.rules)
    summary.cut = trace.cut
    return summary
