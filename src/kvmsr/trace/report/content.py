# SPDX-License-Identifier: Apache-2.0
"""
Content
-------

What the script of a page works on: the accesses, column by column, and what is known of each MSR.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from kvmsr.msr import Msr, decode
from kvmsr.policy import Where
from kvmsr.text import one_line
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES
from kvmsr.trace.file.columns import RIP, VALUE
from kvmsr.trace.report.collect import BINS_PER_OCTAVE, Collected, Kind
from kvmsr.trace.report.rows import MsrRow

__all__ = ("content",)

_MAX_FIELDS: Final = 12_000
_MAX_VALUES: Final = 24
_MAX_CALLERS: Final = 6
_MAX_NAME: Final = 120
_MAX_PATH: Final = 400

_Array = np.ndarray[Any, Any]


class _Words:
    """Distinct words, by number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, word: str) -> int:
        return self.known.setdefault(word, len(self.known))

    def list(self) -> list[str]:
        return list(self.known)


class _Ways:
    """Distinct paths, by number."""

    def __init__(self) -> None:
        self.known: dict[Where, int] = {}

    def number(self, where: Where) -> int:
        return self.known.setdefault(where, len(self.known))


def content(traces: Sequence[Collected], rows: Sequence[MsrRow]) -> dict[str, Any]:
    """Return what the page's script works on."""
    place = {row.index: number for number, row in enumerate(rows)}
    samples = [trace.sample.rows() for trace in traces]
    values: dict[int, dict[int, None]] = {row.index: {} for row in rows}
    for row in rows:
        for kind in (kind for side in row.sides for kind in side.kinds):
            ends = (kind.first, kind.last)
            values[row.index].update((end, None) for end in ends if end is not None)
    for sample in samples:
        has = sample[(sample["has"] & VALUE) != 0]
        for index, value in zip(has["index"].tolist(), has["value"].tolist(), strict=True):
            if index in values:
                values[index][value] = None
    left = [_MAX_FIELDS]
    return {
        "msrs": [_msr(row, traces, values[row.index], left) for row in rows],
        "traces": [
            _trace(trace, sample, place) for trace, sample in zip(traces, samples, strict=True)
        ],
        "ops": OPS,
        "outcomes": OUTCOMES,
        "bins_per_octave": BINS_PER_OCTAVE,
    }


def _msr(
    row: MsrRow, traces: Sequence[Collected], values: Iterable[int], left: list[int]
) -> dict[str, Any]:
    msr = row.msr
    return {
        "index": f"{row.index:#x}",
        "name": row.name,
        "about": msr.about if msr else "",
        "fields": [[f.name, f.span, f.about] for f in msr.fields] if msr else [],
        "decoded": _decoded(msr, values, left),
        "sides": [
            [_kind(kind, trace) for kind in side.kinds]
            for side, trace in zip(row.sides, traces, strict=True)
        ],
    }


def _decoded(msr: Msr | None, values: Iterable[int], left: list[int]) -> dict[str, Any]:
    """Return the fields' numbers and meanings for values, until *left* fields are made."""
    made: dict[str, Any] = {}
    if msr is None or not msr.fields:
        return made
    for value in list(values)[:_MAX_VALUES]:
        if left[0] > 0:
            left[0] -= len(msr.fields)
            found = decode(msr, value)
            made[f"{value:#x}"] = {
                "fields": [[one.shown, one.words] for one in found],
                "summary": found.summary,
                "rest": f"{found.reserved | found.unknown:#x}",
            }
    return made


def _kind(kind: Kind, trace: Collected) -> dict[str, Any]:
    callers = sorted(kind.callers.items(), key=lambda item: -item[1])
    return {
        "op": kind.op,
        "reason": kind.reason,
        "rule": _name(kind.rule),
        "outcome": kind.outcome,
        "count": kind.count,
        "only_counted": kind.only_counted,
        "first": _hex(kind.first),
        "last": _hex(kind.last),
        "callers": [[_path(trace.who(where)), count] for where, count in callers[:_MAX_CALLERS]],
    }


def _trace(trace: Collected, sample: _Array, place: dict[int, int]) -> dict[str, Any]:
    sample = sample[np.isin(sample["index"], list(place))]
    values, ways, cpus, rules = _Words(), _Ways(), _Words(), _Words()
    columns: dict[str, list[Any]] = {
        name: [] for name in ("time", "msr", "cpu", "kind", "value", "rule", "latency", "rip")
    }
    counts = {}
    began = trace.began_ns
    names = trace.rules
    for number, row in enumerate(sample.tolist()):
        (time, _, value, rip, index, latency, count, pid, rule, vm, vcpu, op, _, outcome, _, has,
         *callers) = row  # fmt: skip
        known, n_callers, guesses = callers or ((), 0, 0)
        cpu = f"VM {vm}, vCPU {vcpu}, process {pid}"
        name = names[rule] if rule < len(names) else ""
        columns["time"].append(time - began)
        columns["msr"].append(place[index])
        columns["cpu"].append(cpus.number(cpu))
        columns["kind"].append(op + 2 * outcome)
        columns["value"].append(values.number(f"{value:#x}") if has & VALUE else -1)
        columns["rule"].append(rules.number(_name(name)))
        columns["latency"].append(latency if has & LATENCY else -1)
        columns["rip"].append(
            ways.number(Where(rip, 0, tuple(known[:n_callers]), guesses)) if has & RIP else -1
        )
        if count != 1 or not has & LATENCY:
            counts[number] = count
    bins = trace.latencies.tolist()
    while bins and not bins[-1]:
        bins.pop()
    return {
        **columns,
        "counts": counts,
        "values": values.list(),
        "rips": [_path(trace.who(where)) for where in ways.known],
        "cpus": cpus.list(),
        "rules": rules.list(),
        "bins": bins,
    }


def _path(text: str) -> str:
    text = one_line(text[:_MAX_PATH])
    return text if len(text) < _MAX_PATH else f"{text[: _MAX_PATH - 1]}…"


def _name(rule: str) -> str:
    rule = one_line(rule[:_MAX_NAME])
    return rule if len(rule) <= _MAX_NAME else f"{rule[: _MAX_NAME - 1]}…"


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
