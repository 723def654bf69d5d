# SPDX-License-Identifier: Apache-2.0
"""
Latencies
---------

The latency histogram of a report, and its percentiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvmsr.text import counted, duration
from kvmsr.trace.report.collect import BINS_PER_OCTAVE, Collected

__all__ = ("Bar", "Chart", "chart", "percentile")

WIDTH: Final = 640
HEIGHT: Final = 150


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram: where it is, and what it stands for."""

    trace: int
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """
    The histogram.

    :ivar first: the number of the first bin.
    :ivar bins: the number of bins.
    :ivar bars: the bars.
    :ivar ticks: places on the axis, and their latencies.
    """

    first: int
    bins: int
    bars: list[Bar]
    ticks: list[tuple[float, str]]


def percentile(trace: Collected, percent: int) -> str:
    """Return the latency that so many per cent of the accesses did not exceed; "" without any."""
    found = trace.percentiles()
    return "" if found is None else duration(found[percent])


def _edge(number: float) -> float:
    return float(2 ** (number / BINS_PER_OCTAVE))


def chart(traces: Sequence[Collected]) -> Chart | None:
    """Return the histogram of some traces; None if no latency was recorded."""
    used = np.flatnonzero(sum(trace.latencies for trace in traces))
    if not len(used):
        return None
    first = max(0, int(used[0]) - 1)
    bins = int(used[-1]) + 2 - first
    step = WIDTH / bins
    bars = []
    for number, trace in enumerate(traces):
        most = max(1, int(trace.latencies.max()))
        wide = (step - 1) / len(traces)
        for place in np.flatnonzero(trace.latencies).tolist():
            count = int(trace.latencies[place])
            high = max(2.0, HEIGHT * count / most)
            span = f"{duration(_edge(place))} to {duration(_edge(place + 1))}"
            label = f"{span}: {counted(count, 'access', 'accesses')}"
            x = (place - first) * step + number * wide
            bars.append(Bar(number, round(x, 2), round(HEIGHT - high, 2), round(wide, 2),
                            round(high, 2), label))  # fmt: skip
    ticks = []
    for power in range(10):
        for factor in (1, 3):
            x = (np.log2(factor * 10**power) * BINS_PER_OCTAVE - first) * step
            if 0 <= x <= WIDTH:
                ticks.append((round(float(x), 2), duration(factor * 10**power)))
    return Chart(first, bins, bars, ticks)
