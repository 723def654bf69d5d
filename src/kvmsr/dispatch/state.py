# SPDX-License-Identifier: Apache-2.0
"""
Register state
--------------

The values that guests have written to shadowed MSRs.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvmsr.policy import Bits, Scope, Topology

__all__ = ("MAX_SHADOWS", "Shadows", "holder_of")

MAX_SHADOWS: Final = 65_536
"""Number of values kept for each VM. A guest may write any of 2**32 MSRs."""


class Shadows:
    """
    The last value written, by holder and MSR.

    A holder is a vCPU, or the core, package or VM whose vCPUs share the value. The threads of
    several vCPUs may call the methods at once.

    :param limit: number of values to keep.
    :ivar refused: number of writes that were refused because the limit was reached.
    """

    def __init__(self, limit: int = MAX_SHADOWS) -> None:
        self._values: dict[tuple[int, int], int] = {}
        self._written: set[tuple[int, int]] = set()  # registers with ``once`` bits alone
        self._limit = limit
        self._changing = threading.Lock()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._values)

    def read(self, holder: int, index: int, reset: int) -> int:
        """Return the value last written, or *reset* if there is none."""
        return self._values.get((holder, index), reset)

    def write(self, holder: int, index: int, value: int) -> bool:
        """Keep *value*. Return False if that needs room for another MSR and there is none."""
        key = (holder, index)
        if key in self._values:
            self._values[key] = value
            return True
        with self._changing:
            return self._keep(key, value)

    def read_bits(self, holder: int, index: int, reset: int, bits: Bits) -> int | None:
        """Return the register's value and clear its ``rc`` bits; None if there is no room."""
        key = (holder, index)
        with self._changing:
            value = self._values.get(key, reset)
            left = value & ~bits.rc
            return value if left == value or self._keep(key, left) else None

    def write_bits(self, holder: int, index: int, value: int, reset: int, bits: Bits) -> bool:
        """Write *value* under the rules of *bits*. If it faults, change nothing, return False."""
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

    def forget(self) -> None:
        """Reset all registers."""
        with self._changing:
            self._values.clear()
            self._written.clear()

    def state(self) -> dict[str, Any]:
        """Return everything that is kept, as JSON types."""
        with self._changing:
            return {
                "values": [[*key, value] for key, value in sorted(self._values.items())],
                "written": [list(key) for key in sorted(self._written)],
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace everything that is kept by a state returned by :meth:`state`."""
        with self._changing:
            self._values = {(holder, index): value for holder, index, value in state["values"]}
            self._written = {(holder, index) for holder, index in state["written"]}


def holder_of(topology: Topology, scope: Scope) -> Callable[[int], int]:
    """Return a function from vCPU to the holder of its shadows; no two scopes share a number."""
    if scope is Scope.THREAD:
        return lambda vcpu: vcpu
    unit, place = topology.unit, list(Scope).index(scope)
    return lambda vcpu: -len(Scope) * unit(scope, vcpu) - place
