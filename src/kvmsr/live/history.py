# SPDX-License-Identifier: Apache-2.0
"""
Histories
---------

How many accesses there were in each second of the last minute.
"""

from collections import deque
from typing import Final

__all__ = ("MINUTE", "History", "sparkline")

MINUTE: Final = 60
"""Seconds that a history goes back."""

_WINDOW: Final = 2.0
_BARS: Final = "▁▂▃▄▅▆▇█"
_NONE: Final = "·"


class History:
    """
    Counts over time. A history that nothing was added to for a minute has nothing left.

    :param began: when counting began, in seconds.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._recent: deque[tuple[float, int]] = deque()
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, now: float, count: int) -> None:
        """Add *count*, which were counted at *now*, or shortly before."""
        if not count:
            return
        self._recent.append((now, count))
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))
        while self._seconds[0][0] <= second - MINUTE:
            self._seconds.popleft()

    def rate(self, now: float) -> float:
        """Return the count per second over the last 2 seconds, or since counting began."""
        while self._recent and self._recent[0][0] <= now - _WINDOW:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        seconds = min(_WINDOW, now - self._began)
        return sum(count for _, count in self._recent) / seconds if seconds > 0 else 0.0

    def bars(self, now: float, width: int) -> list[int]:
        """Return the counts of the last minute in *width* parts, 1 to 60, the oldest first."""
        bars = [0] * width
        for second, count in self._seconds:
            age = int(now) - second
            if 0 <= age < MINUTE:
                bars[-1 - age * width // MINUTE] += count
        return bars


def sparkline(bars: list[int]) -> str:
    """Return counts as a line of bars, the highest of which is full."""
    most = max(bars, default=0)
    return "".join(_BARS[(count * len(_BARS) - 1) // most] if count else _NONE for count in bars)
