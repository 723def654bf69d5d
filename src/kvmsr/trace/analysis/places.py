# SPDX-License-Identifier: Apache-2.0
"""
First and last
--------------

Which event was the first, or the last, of each row of a summary.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

__all__ = ("Places",)

_Array = np.ndarray[Any, Any]

_KEPT: Final = np.dtype([("time_ns", "u8"), ("guest_ns", "u8"), ("value", "u8"), ("seen", "?")])


class Places:
    """
    The first or the last event of each row, by the host's clock.

    :param rows: the number of rows.
    :param later: whether to keep the last event.
    """

    def __init__(self, rows: int, *, later: bool) -> None:
        self._kept = np.zeros(rows, _KEPT)
        self._at = np.full(rows, -1, np.int64)
        self._later = later

    def add(self, rows: _Array, events: _Array, these: _Array) -> None:
        """
        Look at *events*, in order of their times.

        :param rows: the row of each event.
        :param these: the numbers of the events that count, in ascending order.
        """
        # Where several values are assigned to one place, numpy keeps the last.
        order = these if self._later else these[::-1]
        self._at[rows[order]] = order
        found = np.flatnonzero(self._at >= 0)
        new = events[self._at[found]]
        self._at[found] = -1
        old = self._kept[found]
        is_later = new["time_ns"] >= old["time_ns"]
        better = ~old["seen"] | (is_later if self._later else new["time_ns"] < old["time_ns"])
        for name in ("time_ns", "guest_ns", "value"):
            self._kept[name][found[better]] = new[name][better]
        self._kept["seen"][found[better]] = True

    def best(self, rows: Sequence[int]) -> tuple[int, int, int] | None:
        """Return time_ns, guest_ns and value of the event of some rows; None if there is none."""
        found = [kept[:3] for kept in self._kept[list(rows)].tolist() if kept[3]]
        if not found:
            return None
        best: tuple[int, int, int] = (max if self._later else min)(found, key=lambda one: one[0])
        return best
