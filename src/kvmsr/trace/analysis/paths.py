# SPDX-License-Identifier: Apache-2.0
"""
Paths
-----

The ways on which a guest came to its accesses, by RIP and callers: each distinct one has a number.
"""

from typing import Any, Final

import numpy as np

from kvmsr.policy import Where
from kvmsr.symbols import Symbols
from kvmsr.trace.analysis.numbering import Numbering
from kvmsr.trace.file.columns import MAX_CALLERS

__all__ = ("Paths", "asker")

_Array = np.ndarray[Any, Any]

_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(29)


class Paths:
    """
    Numbers paths in the order in which they come, from 0.

    :param limit: how many paths to number; all others get this number.
    :ivar known: the paths, in the order of their numbers.
    """

    def __init__(self, limit: int) -> None:
        self.known: list[Where] = []
        self._numbering = Numbering(limit)

    def numbers(self, events: _Array) -> _Array:
        """Return the number of the path of each of *events*, which have a RIP."""
        has_callers = "callers" in (events.dtype.names or ())
        keys = events["rip"].astype(np.uint64)
        if has_callers:
            for column in (*events["callers"].T[:MAX_CALLERS], events["guesses"]):
                keys = (keys ^ keys >> _SHIFT) * _FACTOR + column
        numbers = self._numbering.numbers(keys)
        if len(self._numbering.keys) == len(self.known):
            return numbers
        new, first = np.unique(numbers, return_index=True)
        for number, place in zip(new.tolist(), first.tolist(), strict=True):
            if len(self.known) <= number < len(self._numbering.keys):
                callers, guesses = (), 0
                if has_callers:
                    count = int(events["n_callers"][place])
                    callers = tuple(events["callers"][place][:count].tolist())
                    guesses = int(events["guesses"][place])
                self.known.append(Where(int(events["rip"][place]), 0, callers, guesses))
        return numbers


def asker(where: Where, functions: Symbols | None) -> str:
    """
    Return who asked for an access: the first function that does not access MSRs for others.

    Without symbols, nobody knows which ones do, and it is the first caller's address. "" if the
    callers are not known.
    """
    if functions is None:
        return f"{where.callers[0]:#x}" if where.callers else ""
    return functions.asker(where.rip, where.callers)
