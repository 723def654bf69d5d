# SPDX-License-Identifier: Apache-2.0
"""
Samples
-------

The accesses that a report shows one by one. A trace may have any number of them; a page may not.
"""

from typing import Any, Final

import numpy as np

from kvmsr.trace.file import OUTCOMES
from kvmsr.trace.file.columns import event_type

__all__ = ("MAX_EVENTS", "MAX_FAULTS", "Sample")

MAX_EVENTS: Final = 16_000
"""The number of rows of a sample, apart from those that are kept for what they are."""

MAX_FAULTS: Final = 2_000
"""The number of faults that are kept in any case."""

_FAULT: Final = OUTCOMES.index("fault")

_Array = np.ndarray[Any, Any]


class Sample:
    """
    Some rows of a trace, spread evenly over it, and its first faults.

    :param callers: how many callers the trace has, at most.
    :ivar seen: the number of rows that it was taken from.
    :ivar stride: every how many rows one is in it; 1 for all.
    """

    def __init__(self, callers: int = 0) -> None:
        self.seen = 0
        self.stride = 1
        self._rows = np.zeros(0, event_type(callers))
        self._numbers = np.zeros(0, np.int64)
        self._special = np.zeros(0, np.bool_)
        self._faults = 0

    def add(self, rows: _Array, special: _Array) -> None:
        """
        Add the next rows.

        :param special: which of them are kept in any case.
        """
        numbers = np.arange(self.seen, self.seen + len(rows))
        self.seen += len(rows)
        faults = np.flatnonzero(rows["outcome"] == _FAULT)[: MAX_FAULTS - self._faults]
        self._faults += len(faults)
        special = special.copy()
        special[faults] = True
        kept = special | (numbers % self.stride == 0)
        self._rows = np.concatenate([self._rows, rows[kept]])
        self._numbers = np.concatenate([self._numbers, numbers[kept]])
        self._special = np.concatenate([self._special, special[kept]])
        while np.count_nonzero(self._numbers % self.stride == 0) > MAX_EVENTS:
            self.stride *= 2
            kept = self._special | (self._numbers % self.stride == 0)
            self._rows, self._numbers = self._rows[kept], self._numbers[kept]
            self._special = self._special[kept]

    def rows(self) -> _Array:
        """Return the rows, in order of time."""
        return self._rows[np.argsort(self._rows["time_ns"], kind="stable")]
