# SPDX-License-Identifier: Apache-2.0
"""
Latencies
---------

A histogram for each row of a summary. A bin is a sixteenth of a power of two wide, so a percentile
is right to within 3 %, whatever the number of accesses.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

__all__ = ("PERCENTILES", "Latencies")

_Array = np.ndarray[Any, Any]

PERCENTILES: Final = (50, 90, 99)

_PARTS: Final = 16
"""Bins of a power of two. Values below it have a bin each."""
_SHIFT: Final = 52 - 4  # of a double's bits: leaves the exponent and four bits of the fraction
_FIRST: Final = int(np.float64(_PARTS).view(np.uint64) >> np.uint64(_SHIFT))
_BINS: Final = _PARTS * (1 + 32 - 4)


class Latencies:
    """
    Histograms of latencies in nanoseconds.

    :param rows: the number of histograms.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._counts = np.zeros((0, _BINS), np.int64)

    def add(self, rows: _Array, nanoseconds: _Array) -> None:
        """Count latencies, each in the histogram of its row."""
        if not len(rows):
            return
        needed = int(rows.max()) + 1
        if needed > len(self._counts):
            size = min(self._rows, max(needed, 2 * len(self._counts), 64))
            more = np.zeros((size - len(self._counts), _BINS), np.int64)
            self._counts = np.concatenate([self._counts, more])
        np.add.at(self._counts.reshape(-1), rows * _BINS + _bins(nanoseconds), 1)

    def percentiles(self, rows: Sequence[int] | None = None) -> dict[int, int] | None:
        """
        Return the percentiles of some rows in nanoseconds, or None if they have no latency.

        :param rows: the rows; all of them by default.
        """
        counts = self._counts
        if rows is not None:
            counts = counts[[row for row in rows if row < len(counts)]]
        sums = np.cumsum(counts.sum(axis=0))
        total = int(sums[-1])
        if not total:
            return None
        return {one: _middle(int(np.searchsorted(sums, _rank(total, one)))) for one in PERCENTILES}


def _rank(total: int, percent: int) -> int:
    """Return the position in order, from 1, of the smallest value with *percent* at or below."""
    return -(-total * percent // 100)


def _bins(nanoseconds: _Array) -> _Array:
    """Return the number of the bin of each latency."""
    exponents = nanoseconds.astype(np.float64).view(np.int64) >> _SHIFT
    small = nanoseconds < _PARTS
    found: _Array = np.where(small, nanoseconds, exponents - _FIRST + _PARTS)
    return found


def _middle(number: int) -> int:
    """Return the middle of a bin."""
    if number < _PARTS:
        return number
    power, part = divmod(number - _PARTS, _PARTS)
    return ((2 * (_PARTS + part) + 1) << power) // 2 if power else _PARTS + part
