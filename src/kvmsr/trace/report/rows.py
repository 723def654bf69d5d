# SPDX-License-Identifier: Apache-2.0
"""
Rows
----

The table of a report: one row for each MSR, with what happened to it in each trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kvmsr.msr import Msr, catalog, decode
from kvmsr.trace.report.collect import Collected, Kind

__all__ = ("MsrRow", "Side", "described", "rows")

_MAX_DESCRIBED: Final = 90  # characters


@dataclass(slots=True)
class Side:
    """
    What happened to an MSR in one trace.

    :ivar kinds: its kinds of accesses.
    """

    kinds: list[Kind] = field(default_factory=list)

    def count(self, op: str = "", outcome: str = "") -> int:
        """Return the number of accesses in a direction, with an outcome, or both."""
        return sum(
            kind.count
            for kind in self.kinds
            if (not op or kind.op == op) and (not outcome or kind.outcome == outcome)
        )

    @property
    def first(self) -> int | None:
        """Return the first value that was read or written."""
        found = [kind for kind in self.kinds if kind.first is not None]
        return min(found, key=lambda kind: kind.first_ns).first if found else None

    @property
    def last(self) -> int | None:
        """Return the last value that was read or written."""
        found = [kind for kind in self.kinds if kind.last is not None]
        return max(found, key=lambda kind: kind.last_ns).last if found else None

    @property
    def outcomes(self) -> set[tuple[str, str]]:
        """Return the directions and outcomes."""
        return {(kind.op, kind.outcome) for kind in self.kinds}


@dataclass(slots=True)
class MsrRow:
    """
    A row.

    :ivar sides: what happened, trace by trace.
    """

    index: int
    sides: list[Side]

    @property
    def msr(self) -> Msr | None:
        """Return what the catalog says about the MSR."""
        return catalog().get(self.index)

    @property
    def name(self) -> str:
        """Return the MSR's name; "" if the catalog does not have it."""
        return catalog().name(self.index)

    @property
    def faults(self) -> int:
        """Return the number of faults, in all traces."""
        return sum(side.count(outcome="fault") for side in self.sides)

    @property
    def by_default(self) -> bool:
        """Return whether an access was left to the policy's defaults."""
        return any(kind.by_default for side in self.sides for kind in side.kinds)

    @property
    def differences(self) -> list[str]:
        """Return how the two traces differ, in words, the worst first; none for a single trace."""
        if len(self.sides) != 2:
            return []
        one, other = self.sides
        if not one.kinds or not other.kinds:
            return ["only in A" if one.kinds else "only in B"]
        found = ["outcome"] if one.outcomes != other.outcomes else []
        found += ["value"] if (one.first, one.last) != (other.first, other.last) else []
        counts = [(side.count("read"), side.count("write")) for side in self.sides]
        return found + (["count"] if counts[0] != counts[1] else [])


def rows(traces: Sequence[Collected]) -> list[MsrRow]:
    """Return the rows for some traces, by MSR."""
    made: dict[int, MsrRow] = {}
    for number, trace in enumerate(traces):
        for kind in trace:
            row = made.get(kind.index)
            if row is None:
                row = made[kind.index] = MsrRow(kind.index, [Side() for _ in traces])
            row.sides[number].kinds.append(kind)
    return [made[index] for index in sorted(made)]


def described(msr: Msr | None, value: int | None) -> str:
    """Return the fields of a value that say something, in a few words."""
    if msr is None or value is None:
        return ""
    text = decode(msr, value).brief
    return text if len(text) <= _MAX_DESCRIBED else f"{text[: _MAX_DESCRIBED - 1]}…"
