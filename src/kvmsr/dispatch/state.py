# SPDX-License-Identifier: Apache-2.0
"""
Register state
--------------

What guests have written to shadowed MSRs.
"""

import threading
from typing import Final

__all__ = ("MAX_SHADOWS", "Shadows")

MAX_SHADOWS: Final = 65_536
"""A guest may write any of 2**32 MSRs; this many values a VM are kept."""


class Shadows:
    """
    The last value written, by holder and MSR: a vCPU, or what several of them share.

    :ivar refused: how many writes found no room.
    """

    def __init__(self, limit: int = MAX_SHADOWS) -> None:
        self._values: dict[tuple[int, int], int] = {}
        self._limit = limit
        self._growing = threading.Lock()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._values)

    def read(self, holder: int, index: int, reset: int) -> int:
        """Return what was last written, or *reset*."""
        return self._values.get((holder, index), reset)

    def write(self, holder: int, index: int, value: int) -> bool:
        """Keep *value*; return False if there is no room for another MSR."""
        key = (holder, index)
        if key in self._values:
            self._values[key] = value
            return True
        with self._growing:
            if len(self._values) >= self._limit:
                self.refused += 1
                return False
            self._values[key] = value
            return True
