# SPDX-License-Identifier: Apache-2.0
"""
Counters
--------

Estimate how fast a register counts. When an access was recorded and when its register was read are
not exactly the same time, so the values of a counter are only about right.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median_low
from typing import Final, NamedTuple

from kvmsr.policy import Counter, Op
from kvmsr.trace.learn.seen import Seen, Stream

__all__ = ("Estimate", "estimates")

_U64: Final = (1 << 64) - 1
_SECOND: Final = 10**9
_MAX_HZ: Final = 10**12
_FEWEST: Final = 3
"""Two values make no line."""
_STEADY: Final = 0.05
"""How far off a value may be, as a part of the whole rise."""

_JITTER: Final = 100_000
"""In nanoseconds: a counter that begins so close to 0 begins at 0."""

Point = tuple[int, int]
"""A time in nanoseconds, and a value."""


class Estimate(NamedTuple):
    """
    A counter.

    :ivar hz: how often it counts in a second.
    :ivar reset: its value when the guest began.
    :ivar is_set: whether a write sets it.
    :ivar off: how far off it is at most, in counts.
    """

    hz: int
    reset: int
    is_set: bool
    off: int

    def remark(self) -> str:
        """Return the error in words."""
        ns = self.off * _SECOND // self.hz
        return f"values are up to {self.off:,} off ({ns:,} ns of its time)"


class _Run(NamedTuple):
    """
    Values of a counter that nobody has set in between.

    :ivar points: times and values; the values are relative to the first.
    :ivar base: the first value.
    :ivar is_set: whether the first point is a write.
    """

    points: list[Point]
    base: int
    is_set: bool


def estimates(streams: Sequence[Stream]) -> Iterator[Estimate]:
    """Yield the counters that the values may come from, if they rise steadily, best first."""
    found = []
    done = any(one.outcome == "done" for stream in streams for one in stream.seen)
    for is_set in (False, True) if done else (False,):
        runs = [run for stream in streams for run in _runs(stream, is_set=is_set)]
        values = max((len({value for _, value in run.points}) for run in runs), default=0)
        rise = max((run.points[-1][1] for run in runs), default=0)
        steady = all(_rises(run.points) for run in runs)
        hz = _slope(runs) if values >= _FEWEST and steady else 0.0
        if not 0.5 <= hz <= _MAX_HZ:
            continue
        best = _made(runs, round(hz) or 1, is_set)
        if best.off > rise * _STEADY:
            continue
        found.append(_from_zero(_roundest(runs, best)))
    yield from sorted(found, key=lambda estimate: estimate.off)


def _runs(stream: Stream, *, is_set: bool) -> Iterator[_Run]:
    by_vcpu: dict[int, list[Seen]] = {}
    for one in stream.seen:
        by_vcpu.setdefault(one.vcpu, []).append(one)
    for seen in by_vcpu.values():
        run: _Run | None = None
        for one in seen:
            begins = is_set and one.op == Op.WRITE and one.outcome == "done"
            if begins or (run is None and one.outcome == "value"):
                if run is not None:
                    yield run
                run = _Run([(one.time, 0)], one.value, begins)
            elif run is not None and one.outcome == "value":
                run.points.append((one.time, one.value - run.base & _U64))
        if run is not None:
            yield run


def _rises(points: list[Point]) -> bool:
    return all(a[1] <= b[1] < 1 << 63 for a, b in pairwise(points))


def _slope(runs: list[_Run]) -> float:
    """Return the slope that fits all runs best, in counts a second; 0 if there is none."""
    above = below = 0.0
    for run in runs:
        begun = run.points[0][0]
        times = [float(time - begun) for time, _ in run.points]
        values = [float(value) for _, value in run.points]
        middle, height = sum(times) / len(times), sum(values) / len(values)
        for time, value in zip(times, values, strict=True):
            above += (time - middle) * (value - height)
            below += (time - middle) ** 2
    return above / below * _SECOND if below else 0.0


def _made(runs: list[_Run], hz: int, is_set: bool) -> Estimate:
    counter = Counter(hz)
    free = [run for run in runs if not run.is_set]
    offsets = [run.base + value - counter.ticks(time) for run in free for time, value in run.points]
    reset = median_low(offsets) if offsets else 0
    off = max((abs(offset - reset) for offset in offsets), default=0)
    for run in runs:
        if run.is_set:
            begun = counter.ticks(run.points[0][0])
            for time, value in run.points:
                off = max(off, abs(value - (counter.ticks(time) - begun)))
    return Estimate(hz, reset & _U64, is_set, off)


def _from_zero(found: Estimate) -> Estimate:
    """Let a counter begin at 0 if it began close to that."""
    ahead = min(found.reset, _U64 + 1 - found.reset)
    if ahead > max(found.off, Counter(found.hz).ticks(_JITTER)):
        return found
    return found._replace(reset=0, off=found.off + ahead)


def _roundest(runs: list[_Run], best: Estimate) -> Estimate:
    """Return the counter with the roundest frequency that fits as well as *best*."""
    digits = len(str(best.hz))
    for kept in range(1, digits):
        unit = 10 ** (digits - kept)
        hz = (best.hz + unit // 2) // unit * unit
        if 0 < hz <= _MAX_HZ:
            found = _made(runs, hz, best.is_set)
            if found.off <= best.off * 3 // 2 + 1:
                return found
    return best
