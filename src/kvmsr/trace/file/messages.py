# SPDX-License-Identifier: Apache-2.0
"""
The messages of an Arrow stream
-------------------------------

A stream is a sequence of messages: a length, a header (a flatbuffer), and a body that the header
describes. See Arrow's columnar format, "Encapsulated message format", and its Message.fbs and
Schema.fbs.

nanoarrow reads streams, too, but a file that lies about offsets crashes it (0.9). A trace may be
anybody's file, so it is read here, where every step is checked.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from kvmsr.trace.file.flatbuffer import Table

__all__ = ("Batch", "Column", "Messages")

_CONTINUES: Final = 0xFFFFFFFF
_MAX_HEADER: Final = 1 << 24
_MAX_BODY: Final = 1 << 28
_KIND, _HEADER, _BODY_LENGTH = 1, 2, 3  # fields of Message
_SCHEMA, _BATCH = 1, 3  # kinds of messages
_FIELDS, _METADATA = 1, 2  # fields of Schema
_NAME, _TYPE_KIND, _TYPE, _DICTIONARY = 0, 2, 3, 4  # fields of Field
_INT, _UTF8, _TIMESTAMP = 2, 5, 10  # kinds of types
_BITS, _SIGNED = 0, 1  # fields of Int
_UNIT, _NANOSECOND = 0, 3  # a field of Timestamp, and one of its values
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3  # fields of RecordBatch

Column = tuple[str, str]
"""A column's name and type: "words", "time", or a numpy type such as "u8"."""


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Some rows.

    :ivar rows: the number of rows, according to the file.
    :ivar buffers: what the columns consist of, one after the other, as Arrow lays them out.
    """

    rows: int
    buffers: list[memoryview]


class Messages:
    """
    A stream's messages.

    :param file: the file.
    :ivar columns: the columns.
    :ivar metadata: the metadata of the schema; None if the file ends before that.
    :ivar cut: why the file ends before the stream's own end; "" if it does not.
    :raises ValueError: if this cannot be an Arrow stream.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.cut = ""
        self.columns: list[Column] = []
        self.metadata: dict[bytes, bytes] | None = None
        message, _ = self._next()
        if message is not None:
            if message.number(_KIND, "<B") != _SCHEMA:
                raise ValueError("it does not begin with a schema")
            schema = message.table(_HEADER)
            self.columns = [_column(field) for field in schema.tables(_FIELDS)]
            self.metadata = {pair.text(0): pair.text(1) for pair in schema.tables(_METADATA)}

    def batches(self) -> Iterator[Batch]:
        """
        Yield the batches of rows.

        :raises ValueError: if one is damaged.
        """
        while True:
            message, body = self._next()
            if message is None:
                return
            if message.number(_KIND, "<B") != _BATCH:
                raise ValueError("it has messages of another kind than a trace's")
            yield _batch(message.table(_HEADER), memoryview(body))

    def _next(self) -> tuple[Table | None, bytes]:
        """Return the header and the body of the next message; no header if there is none."""
        prefix = self._read(8)
        if len(prefix) < 8:
            self.cut = "it ends in the middle of a batch" if prefix else "its end is missing"
            return None, b""
        mark, length = struct.unpack("<II", prefix)
        if mark != _CONTINUES or length > _MAX_HEADER:
            raise ValueError("it is not an Arrow stream")
        if not length:  # the end
            return None, b""
        header = self._read(length)
        if len(header) == length:
            message = Table.root(header)
            size = message.number(_BODY_LENGTH, "<q")
            if not 0 <= size <= _MAX_BODY:
                raise ValueError(f"a batch of {size:,} bytes")
            body = self._read(size)
            if len(body) == size:
                return message, body
        self.cut = "it ends in the middle of a batch"
        return None, b""

    def _read(self, size: int) -> bytes:
        """Return the next *size* bytes, or all that are left."""
        parts = []
        while size and (part := self._file.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _column(field: Table) -> Column:
    kind, made = field.number(_TYPE_KIND, "<B"), field.table(_TYPE)
    found = f"type {kind}"
    if field.has(_DICTIONARY):
        found = "a dictionary"
    elif kind == _UTF8:
        found = "words"
    elif kind == _INT:
        sign = "i" if made.number(_SIGNED, "<B") else "u"
        found = f"{sign}{made.number(_BITS, '<i') // 8}"
    elif kind == _TIMESTAMP and made.number(_UNIT, "<h") == _NANOSECOND:
        found = "time"
    return field.text(_NAME).decode(errors="replace"), found


def _batch(batch: Table, body: memoryview) -> Batch:
    if batch.has(_COMPRESSION):
        raise ValueError("its batches are compressed")
    buffers = []
    for first, size in batch.pairs(_BUFFERS):
        if min(first, size) < 0 or first + size > len(body):
            raise ValueError("a column leads out of its batch")
        buffers.append(body[first : first + size])
    return Batch(batch.number(_ROWS, "<q"), buffers)
