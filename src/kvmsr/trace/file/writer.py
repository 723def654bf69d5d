# SPDX-License-Identifier: Apache-2.0
"""
Writing a trace
---------------
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import nanoarrow as na
import nanoarrow.ipc
import numpy as np

from kvmsr.errors import TraceError
from kvmsr.trace.file.columns import WORDS, columns, event_type, is_nullable, values
from kvmsr.trace.file.head import KEY, Head
from kvmsr.trace.file.lock import lock
from kvmsr.trace.file.strings import LONGEST_WORD, encode

__all__ = ("MAX_BATCH", "TraceWriter")

MAX_BATCH: Final = 1 << 16
"""The number of rows of a batch, at most."""

_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
_TYPES: Final[dict[str, Any]] = {
    "u8": na.uint64, "u4": na.uint32, "u2": na.uint16, "u1": na.uint8,
}  # fmt: skip
_ENCODED: Final = {name: [word.encode() for word in words] for name, words in WORDS.items()}


class TraceWriter:
    """
    Writes a trace file, batch by batch.

    Each batch is in the file when :meth:`write` returns, so what is written survives the process.

    :param path: the file; an old one is replaced. It may be a FIFO.
    :param head: what is recorded.
    :param rip: whether rows have RIP and CPL.
    :param callers: how many callers rows have, at most; none without RIP.
    :ivar rows: number of rows written.
    :raises TraceError: if the file cannot be written.
    """

    def __init__(self, path: Path, head: Head, *, rip: bool = False, callers: int = 0) -> None:
        self.rows = 0
        self._failed = False
        self._path = path
        fields = {name: _arrow_type(name, kind) for name, kind in columns(rip=rip, callers=callers)}
        schema = na.c_schema(na.schema(na.Type.STRUCT, fields=fields))
        self._schema = schema.modify(metadata={KEY: head.encoded()})
        self._columns = [(name, na.c_schema(kind)) for name, kind in fields.items()]
        self._batch = io.BytesIO()
        self._arrow = nanoarrow.ipc.StreamWriter.from_writable(self._batch)
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._error(error) from None
        try:
            self._empty()
            self._write(np.zeros(0, event_type(callers)), [b""])
        except BaseException:
            os.close(self._fd)
            raise

    def _empty(self) -> None:
        if not lock(self._fd):
            raise TraceError(
                f"{self._path}: another run is writing its trace there: give another file"
            )
        try:
            os.ftruncate(self._fd, 0)
        except OSError:
            pass  # not a regular file

    def _error(self, error: OSError) -> TraceError:
        return TraceError(f"{self._path}: the trace cannot be written: {error.strerror}")

    def write(self, events: np.ndarray[Any, Any], rules: Sequence[str]) -> None:
        """
        Write *events*, an array of :data:`~kvmsr.trace.file.EVENT`.

        :param rules: the rules, in the order of their numbers in *events*.
        :raises TraceError: if the file cannot be written. It ends with the last batch then, and no
            more may be written.
        """
        words = [rule.encode()[:LONGEST_WORD] for rule in rules] or [b""]
        for first in range(0, len(events), MAX_BATCH):
            part = events[first : first + MAX_BATCH]
            self._write(part, words)
            self.rows += len(part)

    def _write(self, events: np.ndarray[Any, Any], rules: list[bytes]) -> None:
        words = {**_ENCODED, "rule": rules}
        columns = [_column(name, schema, events, words) for name, schema in self._columns]
        batch = na.c_array_from_buffers(
            self._schema, len(events), [None], children=columns, null_count=0
        )
        self._batch.seek(0)
        self._batch.truncate()
        self._arrow.write_array(batch)
        self._put(self._batch.getbuffer())

    def _put(self, data: memoryview | bytes) -> None:
        """Write *data*, all of it or nothing."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            written = len(data) - len(left)
            if written:
                _take_back(self._fd, written)
            self._failed = True
            raise self._error(error) from None

    def close(self) -> None:
        """Mark the end of the trace, if all of it was written, and close the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                if not self._failed:
                    os.write(fd, _END)
            except OSError:
                pass  # the trace is whole all the same; readers say that its end is missing
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _arrow_type(name: str, kind: str) -> na.Schema:
    made: na.Schema
    if kind == "time":
        made = na.timestamp("ns", "UTC", nullable=False)
    elif kind == "words":
        made = na.string(nullable=False)
    else:
        made = _TYPES[kind](nullable=is_nullable(name))
    return made


def _take_back(fd: int, size: int) -> None:
    """Remove the last *size* bytes of a file, unless it is a FIFO."""
    try:
        os.ftruncate(fd, os.lseek(fd, -size, os.SEEK_END))
    except OSError:
        pass


def _column(
    name: str, schema: Any, events: np.ndarray[Any, Any], words: dict[str, list[bytes]]
) -> Any:
    """Return a column of *events* as an Arrow array."""
    count = len(events)
    if name in words:
        offsets, data = encode(events[name], words[name])
        return na.c_array_from_buffers(schema, count, [None, offsets, data], null_count=0)
    if name == "time":
        times = np.ascontiguousarray(events["time_ns"]).view(np.int64)
        return na.c_array_from_buffers(schema, count, [None, times], null_count=0)
    numbers, has = values(events, name)
    valid, nulls = None, 0
    if has is not None:
        nulls = count - int(np.count_nonzero(has))
        valid = np.packbits(has, bitorder="little") if nulls else None
    return na.c_array_from_buffers(schema, count, [valid, numbers], null_count=nulls)
