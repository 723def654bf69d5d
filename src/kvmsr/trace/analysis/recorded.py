# SPDX-License-Identifier: Apache-2.0
"""
What a comparison keeps of a trace
----------------------------------

The number of accesses by MSR, direction and outcome, and the sequence of what was recorded one by
one. Both are limited, as the file may be of any length.
"""

from typing import Any, Final

import numpy as np

from kvmsr.trace.analysis.counting import CountingTrace
from kvmsr.trace.analysis.numbering import Numbering
from kvmsr.trace.file import EVENT, LATENCY, OUTCOMES
from kvmsr.trace.file.columns import VALUE

__all__ = ("MAX_EVENTS", "OP_SHIFT", "WHO_SHIFT", "Recorded")

_Array = np.ndarray[Any, Any]

MAX_EVENTS: Final = 1 << 24
"""How many accesses are compared one by one: 17 bytes each."""
_MAX_PAIRS: Final = 1 << 16

OP_SHIFT: Final = 32
WHO_SHIFT: Final = 33
"""A key is an MSR, a direction, and the VM and its vCPU."""


class Recorded:
    """
    What is compared of a trace, which is read to its end.

    :param max_events: how many accesses to keep.
    :ivar pairs: MSRs and directions, as keys without a vCPU.
    :ivar outcomes: for each pair, the number of accesses by outcome.
    :ivar left_out: the number of accesses that found no place in *outcomes*.
    :ivar keys: for each access that is kept, its MSR, direction and vCPU.
    :ivar values: the values.
    :ivar codes: the outcomes; 4 is added if there is a value.
    :ivar events: the number of accesses that were recorded one by one.
    :ivar grade: how much was recorded.
    :ivar cut: why the trace ends early, or "".
    :ivar dropped: the number of accesses that came too fast to be recorded.
    """

    def __init__(self, trace: CountingTrace, max_events: int = MAX_EVENTS) -> None:
        self._pairs = Numbering(_MAX_PAIRS)
        self._outcomes = np.zeros((_MAX_PAIRS + 1, len(OUTCOMES)), np.int64)
        self.events = 0
        parts = [_kept(np.zeros(0, EVENT))]
        for events in trace.batches():
            self._count(events)
            one_by_one = events[events["has"] & LATENCY != 0]
            left = max(0, max_events - self.events)
            self.events += len(one_by_one)
            parts.append(_kept(one_by_one[:left]))
        self.grade = trace.head.grade
        self.dropped = trace.dropped
        self.cut = trace.cut
        self.pairs = self._pairs.keys
        self.outcomes = self._outcomes[: len(self.pairs)]
        self.left_out = int(self._outcomes[_MAX_PAIRS].sum())
        columns = zip(*parts, strict=True)
        self.keys, self.values, self.codes = (np.concatenate(column) for column in columns)

    def _count(self, events: _Array) -> None:
        pairs = events["op"].astype(np.uint64) << np.uint64(OP_SHIFT) | events["index"]
        counts = events["count"].astype(np.int64)
        places = self._pairs.numbers(pairs) * len(OUTCOMES) + events["outcome"]
        np.add.at(self._outcomes.reshape(-1), places, counts)


def _kept(events: _Array) -> tuple[_Array, _Array, _Array]:
    who = events["vm"].astype(np.uint64) << np.uint64(16) | events["vcpu"]
    keys = (
        who << np.uint64(WHO_SHIFT)
        | events["op"].astype(np.uint64) << np.uint64(OP_SHIFT)
        | events["index"]
    )
    codes = events["outcome"] | (events["has"] & VALUE != 0) * np.uint8(4)
    return keys, np.where(codes & 4, events["value"], np.uint64(0)), codes
