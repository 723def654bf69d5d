# SPDX-License-Identifier: Apache-2.0
"""
The summary of a trace
----------------------

A row for each MSR, direction, reason and rule, and on request for each vCPU. It is made batch by
batch, so that neither time for an access nor memory depends on the length of the trace.

The guest has chosen the MSRs, so the number of rows is limited. Accesses that find no row are
counted together.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from kvmsr.msr import catalog
from kvmsr.text import counted
from kvmsr.trace.analysis.latency import Latencies
from kvmsr.trace.analysis.numbering import Numbering
from kvmsr.trace.analysis.places import Places
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Grade, Head, Trace
from kvmsr.trace.file.columns import RIP, VALUE
from kvmsr.trace.summary import MAX_ROWS, IndexCount

__all__ = ("Moment", "TraceRow", "TraceSummary", "summarise")

_Array = np.ndarray[Any, Any]

_MAX_KINDS: Final = 1 << 16
"""The limit of combinations of rule, reason and direction, and of vCPUs."""
_VCPU_SHIFT: Final = np.uint64(35)  # above a rule's number, the reason and the direction
_RIPS: Final = 4
"""How many RIPs a row shows."""


@dataclass(frozen=True, slots=True)
class Moment:
    """
    When something happened.

    :ivar time_ns: on the host's clock, in nanoseconds since the epoch.
    :ivar guest_ns: on the VM's clock, in nanoseconds since its guest began.
    """

    time_ns: int
    guest_ns: int


@dataclass(frozen=True, slots=True)
class TraceRow:
    """
    The accesses to one MSR in one direction, for one reason, under one rule.

    :ivar index: the MSR; None for those that found no row of their own.
    :ivar op: ``read`` or ``write``.
    :ivar reason: why KVM gave the accesses up.
    :ivar rule: what decided them.
    :ivar vm: the VM; None unless vCPUs have rows of their own.
    :ivar vcpu: the vCPU; None unless vCPUs have rows of their own.
    :ivar outcomes: by outcome, the number of accesses.
    :ivar counted: the number of accesses among them that were only counted.
    :ivar first: the first access.
    :ivar last: the last access.
    :ivar first_value: the first value read or written; None if there was none.
    :ivar last_value: the last value read or written; None if there was none.
    :ivar latency: by percentile, the latency in nanoseconds, to within 3 %; None if not recorded.
    :ivar rips: the most frequent RIPs and their counts; empty if they were not recorded.
    """

    index: int | None
    op: str
    reason: str
    rule: str
    vm: int | None
    vcpu: int | None
    outcomes: dict[str, int]
    counted: int
    first: Moment
    last: Moment
    first_value: int | None
    last_value: int | None
    latency: dict[int, int] | None
    rips: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Return the number of accesses."""
        return sum(self.outcomes.values())

    @property
    def faults(self) -> int:
        """Return the number of accesses that got #GP."""
        return self.outcomes["fault"]

    def as_dict(self) -> dict[str, Any]:
        """Return the row in the form of the JSON summary."""
        who = {} if self.vcpu is None else {"vm": self.vm, "vcpu": self.vcpu}
        return {
            "index": _hex(self.index),
            "name": "" if self.index is None else catalog().name(self.index),
            "op": self.op,
            **who,
            "count": self.count,
            "counted_only": self.counted,
            "reason": self.reason,
            "rule": self.rule,
            "outcomes": self.outcomes,
            "first_value": _hex(self.first_value),
            "last_value": _hex(self.last_value),
            "first": asdict(self.first),
            "last": asdict(self.last),
            "latency_ns": _named(self.latency),
            "rips": [{"rip": _hex(rip), "count": count} for rip, count in self.rips],
        }


class TraceSummary:
    """
    The summary of one trace.

    :param by_vcpu: whether each vCPU has rows of its own.
    :param max_rows: number of rows to keep.
    :ivar head: what was recorded.
    :ivar cut: why the trace ends early, or "".
    :ivar events: the number of rows of the file.
    :ivar other_msrs: the distinct MSRs that found no row.
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
        self._rips = Numbering(_MAX_KINDS)
        self._callers = Numbering(_MAX_KINDS)
        self._calls = np.zeros(_MAX_KINDS + 1, np.int64)

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
        rows, counts = self._rows(events), events["count"].astype(np.int64)
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
        has_rip = events["has"] & RIP != 0
        if has_rip.any():
            self._add_rips(events["rip"][has_rip], rows[has_rip], counts[has_rip])

    def _rows(self, events: _Array) -> _Array:
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
        keys = numbers.astype(np.uint64) << np.uint64(32) | events["index"]
        rows = np.full(len(events), self._max_rows)
        rows[~lost] = self._keys.numbers(keys[~lost])
        rest = rows == self._max_rows
        if rest.any():
            rows[rest] += events["op"][rest]
            for index in np.unique(events["index"][rest]).tolist():
                self.other_msrs.add(index)
        return rows

    def _add_rips(self, rips: _Array, rows: _Array, counts: _Array) -> None:
        numbers = self._rips.numbers(rips).astype(np.uint64)
        callers = self._callers.numbers(rows.astype(np.uint64) << np.uint64(32) | numbers)
        np.add.at(self._calls, callers, counts)

    def rows(self) -> list[TraceRow]:
        """Return the rows in order of their MSRs, reads before writes."""
        rips = self._most_frequent_rips()
        found = [self._row(number, key, rips) for number, key in enumerate(self._keys.keys)]
        return sorted(
            found, key=lambda r: (r.index, r.op, r.vm or 0, r.vcpu or 0, r.reason, r.rule)
        )

    def others(self) -> list[TraceRow]:
        """Return, for each direction, the accesses that found no row, if there are any."""
        found = []
        for number, op in enumerate(OPS, self._max_rows):
            if self._outcomes[number].any():
                found.append(self._made(number, None, op, "", "", None, ()))
        return found

    def _row(self, number: int, key: int, rips: dict[int, list[tuple[int, int]]]) -> TraceRow:
        kind = self._kinds.keys[key >> 32]
        who = self._vcpus.keys[kind >> int(_VCPU_SHIFT)] if self._by_vcpu else None
        rule = self._rules[kind >> 3 & 0xFFFFFFFF]
        where = tuple(sorted(rips.get(number, ()), key=lambda pair: (-pair[1], pair[0]))[:_RIPS])
        return self._made(
            number, key & 0xFFFFFFFF, OPS[kind & 1], REASONS[kind >> 1 & 3], rule, who, where
        )

    def _made(
        self,
        number: int,
        index: int | None,
        op: str,
        reason: str,
        rule: str,
        who: int | None,
        rips: tuple[tuple[int, int], ...],
    ) -> TraceRow:
        first, last = self._first[number], self._last[number]
        first_value, last_value = self._first_value[number], self._last_value[number]
        assert first is not None
        assert last is not None
        return TraceRow(
            index=index,
            op=op,
            reason=reason,
            rule=rule,
            vm=None if who is None else who >> 16,
            vcpu=None if who is None else who & 0xFFFF,
            outcomes=dict(zip(OUTCOMES, self._outcomes[number].tolist(), strict=True)),
            counted=int(self._counted[number]),
            first=Moment(first[0], first[1]),
            last=Moment(last[0], last[1]),
            first_value=None if first_value is None else first_value[2],
            last_value=None if last_value is None else last_value[2],
            latency=self._latencies.percentiles(number),
            rips=rips,
        )

    def _most_frequent_rips(self) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        for number, key in enumerate(self._callers.keys):
            rip = key & 0xFFFFFFFF
            if rip < len(self._rips.keys):
                pair = (self._rips.keys[rip], int(self._calls[number]))
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

    def as_dict(self) -> dict[str, Any]:
        """Return head, totals and rows in the form of the JSON summary."""
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
            "latency_ns": _named(self.latency()),
            "accesses": [row.as_dict() for row in self.rows()],
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


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _named(latency: dict[int, int] | None) -> dict[str, int] | None:
    return None if latency is None else {f"p{one}": ns for one, ns in latency.items()}


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
