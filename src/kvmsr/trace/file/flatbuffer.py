# SPDX-License-Identifier: Apache-2.0
"""
Flatbuffers
-----------

Read the tables of a flatbuffer that may be anybody's: everything is checked before it is used. See
"FlatBuffer Internals" in the documentation of FlatBuffers.
"""

import struct
from typing import Final, Self

__all__ = ("Table",)

_MAX_COUNT: Final = 4096


class Table:
    """
    A table. Its fields are known by their numbers in the schema.

    All methods raise ValueError if the buffer cannot be right.

    :param data: the buffer.
    :param at: where the table is.
    """

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._fields = at - _number("<i", data, at)
        self._size = _number("<H", data, self._fields)

    @classmethod
    def root(cls, data: bytes) -> Self:
        """Return the table that a buffer begins with."""
        return cls(data, _number("<I", data, 0))

    def _place(self, field: int) -> int | None:
        if 4 + 2 * field >= self._size:
            return None
        offset = _number("<H", self._data, self._fields + 4 + 2 * field)
        return self._at + offset if offset else None

    def _target(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise ValueError("a field is missing")
        return place + _number("<I", self._data, place)

    def has(self, field: int) -> bool:
        """Return whether a field is there."""
        return self._place(field) is not None

    def number(self, field: int, form: str) -> int:
        """Return a number; 0 if the field is not there. *form* is that of the struct module."""
        place = self._place(field)
        return 0 if place is None else _number(form, self._data, place)

    def table(self, field: int) -> "Table":
        """Return a table within this one."""
        return Table(self._data, self._target(field))

    def text(self, field: int) -> bytes:
        """Return a string."""
        at = self._target(field)
        size = _number("<I", self._data, at)
        if at + 4 + size > len(self._data):
            raise ValueError("a string is too long")
        return self._data[at + 4 : at + 4 + size]

    def tables(self, field: int) -> list["Table"]:
        """Return the tables of a vector; none if the field is not there."""
        if not self.has(field):
            return []
        places = self._elements(field, 4)
        return [Table(self._data, at + _number("<I", self._data, at)) for at in places]

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Return the elements of a vector of structures of two 64-bit numbers."""
        return [
            (_number("<q", self._data, at), _number("<q", self._data, at + 8))
            for at in self._elements(field, 16)
        ]

    def _elements(self, field: int, size: int) -> range:
        at = self._target(field)
        count = _number("<I", self._data, at)
        if count > _MAX_COUNT:
            raise ValueError(f"a list of {count:,}")
        return range(at + 4, at + 4 + size * count, size)


def _number(form: str, data: bytes, at: int) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(form):
        raise ValueError("an offset leads nowhere")
    found: int = struct.unpack_from(form, data, at)[0]
    return found
