# SPDX-License-Identifier: Apache-2.0
"""
Register state
--------------

What guests have written to shadowed MSRs.
"""

import threading
from collections.abc import Mapping
from typing import Any, Final

from kvmsr.policy import Bits

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
        self._written: set[tuple[int, int]] = set()  # of those with bits that care
        self._limit = limit
        self._changing = threading.Lock()
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
        with self._changing:
            return self._keep(key, value)

    def read_bits(self, holder: int, index: int, reset: int, bits: Bits) -> int | None:
        """Return what the register holds and clear its ``rc`` bits; None if there is no room."""
        key = (holder, index)
        with self._changing:
            value = self._values.get(key, reset)
            left = value & ~bits.rc
            return value if left == value or self._keep(key, left) else None

    def write_bits(self, holder: int, index: int, value: int, reset: int, bits: Bits) -> bool:
        """Write *value* as *bits* say; return False, and change nothing, if that faults."""
        key = (holder, index)
        with self._changing:
            old = self._values.get(key, reset)
            new = bits.write(old, value, first=key not in self._written)
            if new is None or not self._keep(key, new):
                return False
            if bits.once:
                self._written.add(key)
            return True

    def _keep(self, key: tuple[int, int], value: int) -> bool:
        if key not in self._values and len(self._values) >= self._limit:
            self.refused += 1
            return False
        self._values[key] = value
        return True

    def state(self) -> dict[str, Any]:
        """Return what is kept, as JSON knows it."""
        with self._changing:
            return {
                "values": [[*key, value] for key, value in sorted(self._values.items())],
                "written": [list(key) for key in sorted(self._written)],
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Keep what :meth:`state` told, and nothing else."""
        with self._changing:
            self._values = {(holder, index): value for holder, index, value in state["values"]}
            self._written = {(holder, index) for holder, index in state["written"]}
