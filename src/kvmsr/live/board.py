# SPDX-License-Identifier: Apache-2.0
"""
The board
---------

What is known of a run's MSRs, from what it answers again and again: a line for each MSR.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvmsr.live.history import History
from kvmsr.text import one_line

__all__ = ("Board", "Line", "Sort")


class Sort(enum.StrEnum):
    """What comes first."""

    RATE = "rate"
    COUNT = "count"
    INDEX = "index"
    FAULTS = "faults"


class Line:
    """
    One MSR, under all rules.

    :ivar index: the MSR.
    :ivar name: its name, or "".
    :ivar reads: number of reads; so are *writes*, and *faults* of both.
    :ivar last_value: the value last read or written; None if there is none.
    :ivar last_op: whether that was read or written.
    :ivar values: by direction, the value last read and the value last written.
    :ivar reason: why KVM gave up the last access.
    :ivar rule: what decided the last access.
    :ivar first_rip: the guest's RIP at the first access; "" if it is not known.
    :ivar history: how many accesses there were, and when.
    :ivar has_faulted: whether a fault is among the last accesses.
    """

    __slots__ = (
        "_faults", "_parts", "faults", "first_rip", "has_faulted", "history", "index", "last_op",
        "last_value", "name", "reads", "reason", "rule", "text", "values", "writes",
    )  # fmt: skip

    def __init__(self, index: int, name: str, began: float) -> None:
        self.index = index
        self.name = one_line(name)
        self.reads = self.writes = self.faults = 0
        self.last_value: int | None = None
        self.last_op = self.reason = self.rule = self.first_rip = ""
        self.values: dict[str, int] = {}
        self.history = History(began)
        self.has_faulted = False
        self.text = ""
        self._parts: dict[tuple[str, str, str], tuple[int, int]] = {}

    @property
    def count(self) -> int:
        """Return the number of accesses."""
        return self.reads + self.writes

    def take(self, row: Mapping[str, Any], now: float, *, is_new: bool) -> int:
        """
        Take a row of the run's summary, and return the number of accesses since the last one.

        :param is_new: whether the row's accesses happened since the run was last asked.
        """
        op, reason, rule = row["op"], row["reason"], one_line(row["rule"])
        count, faults = row["count"], row["outcomes"]["fault"]
        before, faults_before = self._parts.get((op, reason, rule), (0, 0))
        self._parts[op, reason, rule] = count, faults
        added = max(count - before, 0)
        if op == "read":
            self.reads += added
        else:
            self.writes += added
        self.faults += max(faults - faults_before, 0)
        self.has_faulted = faults > faults_before
        self.reason, self.rule = reason, rule
        self.first_rip = self.first_rip or row["first_rip"] or ""
        if row["last_value"] is not None:
            self.last_value, self.last_op = int(row["last_value"], 16), op
            self.values[op] = self.last_value
        self.text = f"{self.index:#x} {self.name} {reason} {rule}".lower()
        if is_new:
            self.history.add(now, added)
        return added if is_new else 0


class Board:
    """
    The lines of a run.

    :param began: when it was asked for the first time, in seconds.
    :ivar lines: by MSR.
    :ivar history: the accesses to all of them, and when they were.
    :ivar widths: the longest index, name, value and rule so far, in characters.
    """

    def __init__(self, began: float) -> None:
        self.lines: dict[int, Line] = {}
        self.history = History(began)
        self.widths = {"index": 0, "name": 0, "value": 0, "rule": 0}
        self._began = began
        self._is_first = True

    def take(self, rows: Iterable[Mapping[str, Any]], now: float) -> None:
        """Take the rows that have changed since the last call; *now* is in seconds."""
        total = 0
        for row in rows:
            index = int(row["index"], 16)
            line = self.lines.get(index)
            if line is None:
                line = self.lines[index] = Line(index, row["name"], self._began)
            total += line.take(row, now, is_new=not self._is_first)
            self._widen(line)
        self.history.add(now, total)
        self._is_first = False

    def _widen(self, line: Line) -> None:
        value = 0 if line.last_value is None else len(f"{line.last_value:#x}")
        widths = {
            "index": len(f"{line.index:#x}"),
            "name": len(line.name),
            "value": value,
            "rule": len(line.rule),
        }
        for name, width in widths.items():
            self.widths[name] = max(self.widths[name], width)

    def sorted(self, by: Sort, words: str, now: float) -> list[Line]:
        """
        Return the lines that have all of some words, in order.

        :param by: what comes first. Lines that are equal in it are in order of their MSRs.
        :param words: each has to be in an MSR's number, name, reason or rule; case does not count.
        """
        wanted = words.lower().split()
        found = [line for line in self.lines.values() if all(word in line.text for word in wanted)]
        if by is Sort.INDEX:
            return sorted(found, key=lambda line: line.index)
        numbers: dict[Sort, Callable[[Line], float]] = {
            Sort.RATE: lambda line: line.history.rate(now),
            Sort.COUNT: lambda line: line.count,
            Sort.FAULTS: lambda line: line.faults,
        }
        number = numbers[by]
        return sorted(found, key=lambda line: (-number(line), line.index))
