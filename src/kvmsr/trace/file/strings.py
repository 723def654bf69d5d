# SPDX-License-Identifier: Apache-2.0
"""
Columns of words
----------------

A trace's words are few, but each row of a file has them in full. These functions turn numbers of
words into such a column and back, without a loop over the rows.
"""

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

__all__ = ("LONGEST_WORD", "WordReader", "encode")

_Array = np.ndarray[Any, Any]

LONGEST_WORD: Final = 4096


def encode(numbers: _Array, words: Sequence[bytes]) -> tuple[_Array, _Array]:
    """
    Return the offsets and the bytes of a column of *words*.

    :param numbers: for each row, the number of its word.
    """
    lengths = np.array([len(word) for word in words], np.int32)
    longest = int(lengths.max(initial=1))
    table = np.array(words, f"S{longest}").view(np.uint8).reshape(-1, longest)
    each = lengths[numbers]
    offsets = np.zeros(len(numbers) + 1, np.int32)
    np.cumsum(each, out=offsets[1:])
    data = table[numbers][np.arange(longest, dtype=np.int32) < each[:, None]]
    return offsets, data


class WordReader:
    """
    Turns columns of words into numbers. Equal words get equal numbers in all columns it reads.

    :param words: the words that are known already; they have the numbers 0, 1, 2 and so on.
    :param grows: whether new words get numbers, too.
    :ivar words: the words, in order of their numbers.
    """

    def __init__(self, words: Sequence[str] = (), *, grows: bool = False) -> None:
        self.words: list[str] = []
        self._numbers: dict[bytes, int] = {}
        self._grows = grows
        self._known = np.zeros(1, np.uint64)  # the sums of known words, in order; 0 is no word's
        self._by_sum = np.zeros(1, np.uint32)
        for word in words:
            self._add(word.encode())

    def _add(self, word: bytes) -> int:
        number = self._numbers[word] = len(self.words)
        self.words.append(word.decode(errors="replace"))
        return number

    def _number(self, word: bytes) -> int:
        number = self._numbers.get(word)
        if number is not None:
            return number
        if not self._grows:
            raise ValueError(word.decode(errors="backslashreplace"))
        return self._add(word)

    def read(self, offsets: _Array, data: _Array) -> _Array:
        """
        Return the numbers of a column's words.

        :raises ValueError: if a word is not known and new ones are not wanted, or is too long.
        """
        if len(offsets) < 2:
            return np.zeros(0, np.uint32)
        sums = _sums(offsets, data)
        at, missing = self._find(sums)
        if missing.any():
            for first in np.unique(sums[missing], return_index=True)[1]:
                row = int(np.flatnonzero(missing)[first])
                word = data[offsets[row] : offsets[row + 1]].tobytes()
                self._learn(int(sums[row]), self._number(word))
            at, _ = self._find(sums)
        return self._by_sum[at]

    def _find(self, sums: _Array) -> tuple[_Array, _Array]:
        """Return where in the known sums each one is, and which are not there."""
        at = np.searchsorted(self._known, sums)
        at[at == len(self._known)] = 0
        return at, self._known[at] != sums

    def _learn(self, found: int, number: int) -> None:
        at = int(np.searchsorted(self._known, np.uint64(found)))
        self._known = np.insert(self._known, at, np.uint64(found))
        self._by_sum = np.insert(self._by_sum, at, np.uint32(number))


_CHUNK: Final = 8
_MASKS: Final = np.array([(1 << 8 * size) - 1 for size in range(_CHUNK + 1)], np.uint64)
_FACTORS: Final = np.frombuffer(  # numpy.random would take longer to import than a trace to read
    os.urandom(_CHUNK * (LONGEST_WORD // _CHUNK + 2)), np.uint64
) | np.uint64(1)  # fmt: skip


def _sums(offsets: _Array, data: _Array) -> _Array:
    """
    Return a number for each word, which tells it apart from others but for a chance of 2**-63.

    It is the sum of the word's 8-byte chunks and its length, each times a random odd number.
    """
    starts = offsets[:-1].astype(np.int64)
    lengths = np.diff(offsets)
    longest = int(lengths.max())
    if longest > LONGEST_WORD:
        raise ValueError(f"a word of {longest:,} bytes")
    padded = np.concatenate([data, np.zeros(2 * _CHUNK, np.uint8)])
    chunks = np.ndarray((len(padded) - _CHUNK,), "<u8", padded, strides=(1,))  # at each byte
    sums: _Array = (lengths.astype(np.uint64) + np.uint64(1)) * _FACTORS[-1]
    for number in range((longest + _CHUNK - 1) // _CHUNK):
        at = np.minimum(starts + number * _CHUNK, len(data)) if number else starts
        size = np.clip(lengths - number * _CHUNK, 0, _CHUNK)
        sums += (chunks[at] & _MASKS[size]) * _FACTORS[number]
    return sums
