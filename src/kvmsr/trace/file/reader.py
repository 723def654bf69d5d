# SPDX-License-Identifier: Apache-2.0
"""
Reading a trace
---------------

A trace may be anybody's file, so nothing in it is taken for granted. It is read batch by batch, so
its length does not matter.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast

import numpy as np

from kvmsr.errors import TraceError
from kvmsr.text import shown
from kvmsr.trace.file.columns import NULLABLE, WORDS, caller, columns, event_type
from kvmsr.trace.file.head import KEY, Head
from kvmsr.trace.file.messages import Batch, Messages
from kvmsr.trace.file.strings import WordReader

__all__ = ("Trace",)

_MAX_ROWS: Final = 1 << 20

_Array = np.ndarray[Any, Any]


class Trace:
    """
    A trace file::

        with Trace(Path("boot.arrows")) as trace:
            for rows in trace.batches():
                faults = rows[rows["outcome"] == OUTCOMES.index("fault")]

    :param path: the file, or a FIFO.
    :param source: what to read instead of opening *path*.
    :ivar path: the file.
    :ivar head: what was recorded.
    :ivar callers: how many callers rows have, at most.
    :raises TraceError: if the file cannot be read or is not a trace.
    """

    def __init__(self, path: Path, source: BinaryIO | None = None) -> None:
        self.path = path
        self._file = source if source is not None else _opened(path)
        self._rules = WordReader(grows=True)
        self._words = {name: WordReader(words) for name, words in WORDS.items()}
        try:
            self.head = self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> Head:
        try:
            self._messages = Messages(self._file)
        except OSError as error:
            raise self._error(f"the trace cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise self._error(f"this is not a trace of kvmsr: {_short(error)}") from None
        metadata = self._messages.metadata
        if metadata is None:
            empty = self._messages.cut == "its end is missing"
            raise self._error("the file is empty" if empty else "it ends within its head")
        if KEY not in metadata:
            raise self._error("this is not a trace of kvmsr, but another Arrow file")
        try:
            head = Head.decoded(metadata[KEY])
        except TraceError as error:
            raise self._error(str(error)) from None
        given = [(name, kind) for name, kind in self._messages.columns]
        names = {name for name, _ in given}
        self.callers = sum(caller(name) is not None for name in names)
        if given != columns(rip="rip" in names, callers=self.callers):
            raise self._error("the trace is damaged: it has other columns than it should")
        return head

    def _error(self, what: str) -> TraceError:
        return TraceError(f"{self.path}: {what}")

    @property
    def rules(self) -> list[str]:
        """Return the rules so far, in the order of their numbers. They grow with the batches."""
        return self._rules.words

    @property
    def cut(self) -> str:
        """Return why the trace ends before its writer's end, or "". Known once all is read."""
        return self._messages.cut

    def batches(self) -> Iterator[_Array]:
        """
        Yield the rows, some at a time, as arrays of :data:`~kvmsr.trace.file.EVENT`. Call it once.

        A trace whose writer was killed ends with the last batch that is whole.

        :raises TraceError: if the trace is damaged.
        """
        try:
            for batch in self._messages.batches():
                if batch.rows:
                    yield self._rows(batch)
        except OSError as error:
            raise self._error(f"the trace cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise self._error(f"the trace is damaged: {_short(error)}") from None

    def _rows(self, batch: Batch) -> _Array:
        if not 0 < batch.rows <= _MAX_ROWS:
            raise ValueError(f"a batch of {batch.rows:,} rows")
        events = np.zeros(batch.rows, event_type(self.callers))
        buffers = iter(batch.buffers)
        for name, _ in self._messages.columns:
            try:
                self._fill(events, name, buffers)
            except (ValueError, StopIteration) as error:
                what = str(error) or "it is missing"
                raise ValueError(f"column {name}: {what}") from None
        return events

    def _fill(self, events: _Array, name: str, buffers: Iterator[memoryview]) -> None:
        """Take a column's buffers, and put its values into *events*."""
        count = len(events)
        valid, values = next(buffers), next(buffers)
        if name in WORDS or name == "rule":
            reader = self._rules if name == "rule" else self._words[name]
            offsets = _numbers(values, np.dtype("<i4"), count + 1)
            data = np.frombuffer(next(buffers), np.uint8)
            if offsets[0] < 0 or offsets[-1] > len(data) or bool((np.diff(offsets) < 0).any()):
                raise ValueError("its offsets are wrong")
            events[name] = reader.read(offsets, data)
            return
        number = caller(name)
        if number is not None:
            found = _numbers(values, np.dtype("<u8"), count)
            has = (_bits(valid, count) != 0) & (events["n_callers"] == number)  # none is left out
            events["callers"][has, number] = found[has]
            events["n_callers"] += has
            return
        field = "time_ns" if name == "time" else name
        events[field] = _numbers(values, events.dtype[field], count)
        if name in NULLABLE:
            events["has"] |= _bits(valid, count) * np.uint8(NULLABLE[name])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a file"
            raise TraceError(f"{path}: the trace cannot be read: it is {kind}")
        return cast(BinaryIO, path.open("rb"))
    except OSError as error:
        raise TraceError(f"{path}: the trace cannot be read: {error.strerror}") from None


def _numbers(buffer: memoryview, kind: np.dtype[Any], count: int) -> _Array:
    if len(buffer) < count * kind.itemsize:
        raise ValueError("it is too short")
    return np.frombuffer(buffer, kind, count)


def _bits(buffer: memoryview, count: int) -> _Array:
    """Return 1 for each row that has a value. Without any bits, all have one."""
    if not len(buffer):
        return np.ones(count, np.uint8)
    bits = _numbers(buffer, np.dtype(np.uint8), (count + 7) // 8)
    return np.unpackbits(bits, count=count, bitorder="little")


def _short(error: BaseException) -> str:
    return shown(str(error)).strip("'\"")
