# SPDX-License-Identifier: Apache-2.0
"""
Numbering
---------

Gives each distinct key of an array a small number, without a loop over the array.
"""

from typing import Any, Final

import numpy as np

__all__ = ("Numbering",)

_Array = np.ndarray[Any, Any]

_SLOTS: Final = 1 << 13
_SHIFT: Final = np.uint64(64 - 13)
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Fibonacci hashing)


class Numbering:
    """
    Numbers keys in the order in which they come, from 0. Once there are *limit* keys, all others
    get the number *limit*.

    :param limit: how many keys to number.
    :ivar keys: the keys, in the order of their numbers.
    """

    def __init__(self, limit: int) -> None:
        self.keys: list[int] = []
        self._limit: Final = limit
        self._known = np.zeros(0, np.uint64)  # in ascending order
        self._numbers = np.zeros(0, np.int64)
        # Most keys are found at once, in the slot of their hash; binary search is slow.
        self._slot_keys = np.zeros(_SLOTS, np.uint64)
        self._slot_numbers = np.full(_SLOTS, -1)

    def numbers(self, keys: _Array) -> _Array:
        """Return the number of each of *keys*, an array of u8."""
        slots = _slots(keys)
        found = self._slot_numbers[slots]
        slow = (found < 0) | (self._slot_keys[slots] != keys)
        if slow.any():
            found[slow] = self._search(keys[slow])
        return found

    def _search(self, keys: _Array) -> _Array:
        at, missing = self._find(keys)
        if missing.any() and len(self.keys) < self._limit:
            self._learn(keys[missing])
            at, missing = self._find(keys)
        if not len(self._known):
            return np.full(len(keys), self._limit, np.int64)
        found = self._numbers[at]
        found[missing] = self._limit
        return found

    def _find(self, keys: _Array) -> tuple[_Array, _Array]:
        """Return where each key is among those known, and which ones are not there."""
        if not len(self._known):
            return np.zeros(len(keys), np.int64), np.ones(len(keys), np.bool_)
        at = np.searchsorted(self._known, keys)
        at[at == len(self._known)] = 0
        return at, self._known[at] != keys

    def _learn(self, keys: _Array) -> None:
        new, first = np.unique(keys, return_index=True)
        new = new[np.argsort(first)][: self._limit - len(self.keys)]
        begin = len(self.keys)
        self.keys += new.tolist()
        known = np.concatenate([self._known, new])
        numbers = np.concatenate([self._numbers, np.arange(begin, begin + len(new))])
        order = np.argsort(known)
        self._known, self._numbers = known[order], numbers[order]
        slots = _slots(new)
        self._slot_keys[slots] = new
        self._slot_numbers[slots] = numbers[begin:]


def _slots(keys: _Array) -> _Array:
    found: _Array = keys * _FACTOR >> _SHIFT
    return found
