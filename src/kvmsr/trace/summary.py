# SPDX-License-Identifier: Apache-2.0
"""
The summary of a run
--------------------

What the guest accessed, how often, and with what result: a row for each MSR, direction, reason and
rule.

The guest chooses the MSRs, so the number of rows is limited. Accesses that find no row are counted
together.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from kvmsr.dispatch import Outcome, Verdict
from kvmsr.msr import catalog
from kvmsr.policy import Access, Op, Reason
from kvmsr.text import counted

__all__ = ("MAX_ROWS", "IndexCount", "Row", "Summary")

MAX_ROWS: Final = 4096

_READ = Op.READ
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT


class Row:
    """
    The accesses to one MSR in one direction, for one reason, under one rule.

    :ivar index: the MSR.
    :ivar op: read or write.
    :ivar reason: why KVM gave the accesses up.
    :ivar rule: what decided them: where the rule was written, ``defaults.unknown``, or ``kernel``.
    :ivar values: number of reads that returned a value.
    :ivar dones: number of writes that were done.
    :ivar faults: number of accesses that got #GP.
    :ivar stops: number of accesses that ended the run, without an answer.
    :ivar first_value: the first value read or written; None if no read returned one.
    :ivar last_value: the last value read or written; None if no read returned one.
    :ivar first_rip: the guest's RIP at the first access; None if it is not known.
    """

    __slots__ = (
        "dones",
        "faults",
        "first_rip",
        "first_value",
        "index",
        "last_value",
        "op",
        "reason",
        "rule",
        "stops",
        "values",
    )

    def __init__(self, index: int, op: Op, reason: Reason, rule: str) -> None:
        self.index = index
        self.op = op
        self.reason = reason
        self.rule = rule
        self.values = self.dones = self.faults = self.stops = 0
        self.first_value: int | None = None
        self.last_value: int | None = None
        self.first_rip: int | None = None

    @property
    def count(self) -> int:
        """Return the number of accesses."""
        return self.values + self.dones + self.faults + self.stops

    def add(self, other: "Row") -> None:
        """Add the accesses that *other*, a row for the same key, counted later."""
        self.values += other.values
        self.dones += other.dones
        self.faults += other.faults
        self.stops += other.stops
        if self.first_value is None:
            self.first_value = other.first_value
        if other.last_value is not None:
            self.last_value = other.last_value
        if self.first_rip is None:
            self.first_rip = other.first_rip

    def as_dict(self) -> dict[str, Any]:
        """Return the row in the form of the JSON summary."""
        return {
            "index": f"{self.index:#x}",
            "name": catalog().name(self.index),
            "op": str(self.op),
            "count": self.count,
            "reason": str(self.reason),
            "rule": self.rule,
            "outcomes": {
                "value": self.values,
                "done": self.dones,
                "fault": self.faults,
                "stop": self.stops,
            },
            "first_value": _hex(self.first_value),
            "last_value": _hex(self.last_value),
            "first_rip": _hex(self.first_rip),
        }


class IndexCount:
    """
    Counts distinct MSRs in at most 16 MiB of bitmaps.

    :ivar exact: False if the bitmaps were not enough, and some MSRs were not counted.
    """

    _PAGE_BITS: Final = 15
    _MAX_PAGES: Final = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self.exact = True

    def add(self, index: int) -> None:
        """Count *index*, unless it has been counted."""
        number, bit = index >> self._PAGE_BITS, index & (1 << self._PAGE_BITS) - 1
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= self._MAX_PAGES:
                self.exact = False
                return
            page = self._pages[number] = bytearray(1 << self._PAGE_BITS - 3)
        page[bit >> 3] |= 1 << (bit & 7)

    def update(self, other: "IndexCount") -> None:
        """Count the MSRs that *other* counted."""
        self.exact = self.exact and other.exact
        for number, bits in other._pages.copy().items():  # its thread may still be counting
            self.add_page(number, bits)

    def add_page(self, number: int, bits: bytes | bytearray) -> None:
        """
        Count the MSRs that are set in a bitmap.

        :param number: page number; the page begins at MSR *number* * 32,768.
        :param bits: 4096 bytes, the lowest MSR in bit 0 of the first one.
        """
        page = self._pages.get(number)
        if page is not None:
            both = int.from_bytes(page, "little") | int.from_bytes(bits, "little")
            page[:] = both.to_bytes(len(page), "little")
        elif len(self._pages) < self._MAX_PAGES:
            self._pages[number] = bytearray(bits)
        else:
            self.exact = False

    def __len__(self) -> int:
        return sum(
            int.from_bytes(page, "little").bit_count() for page in self._pages.copy().values()
        )


class Summary:
    """
    The rows of a run, and a count of the accesses that found no row.

    Only one thread may write to a summary; :meth:`merged` adds up those of several threads.

    :param max_rows: number of rows to keep.
    :param rip: returns the guest's RIP; called at the first access of a row.
    :ivar others: by direction, the accesses that found no row; *index*, *reason* and *rule* mean
        nothing in it.
    :ivar other_msrs: the distinct MSRs among them.
    """

    def __init__(
        self, max_rows: int = MAX_ROWS, rip: Callable[[], int | None] = lambda: None
    ) -> None:
        self._rows: dict[tuple[int, Op, Reason, str], Row] = {}
        self._max_rows = max_rows
        self._rip = rip
        self.others = {op: Row(0, op, Reason.UNKNOWN, "") for op in Op}
        self.other_msrs = IndexCount()

    def record(self, access: Access, outcome: Outcome) -> None:
        """Count *access*, which ended with *outcome*."""
        _, op, index, value, reason, _ = access
        verdict, rule, answer = outcome
        key = (index, op, reason, rule)
        row = self._rows.get(key)
        if row is None:
            row = self._add(key)
            if row.first_rip is None:
                row.first_rip = self._rip()
        if verdict is _VALUE:
            row.values += 1
            row.last_value = value = answer
        else:
            if verdict is _DONE:
                row.dones += 1
            elif verdict is _FAULT:
                row.faults += 1
            else:
                row.stops += 1
            if op == _READ:
                return  # the guest got no value
            row.last_value = value
        if row.first_value is None:
            row.first_value = value

    def _add(self, key: tuple[int, Op, Reason, str]) -> Row:
        if len(self._rows) >= self._max_rows:
            self.other_msrs.add(key[0])
            return self.others[key[1]]
        row = self._rows[key] = Row(*key)
        return row

    def add(self, row: Row) -> None:
        """Count the accesses that *row* counted."""
        key = (row.index, row.op, row.reason, row.rule)
        (self._rows.get(key) or self._add(key)).add(row)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order of their MSRs, reads before writes."""
        return iter(sorted(self._rows.values(), key=lambda r: (r.index, r.op, r.reason, r.rule)))

    def __len__(self) -> int:
        return len(self._rows)

    @classmethod
    def merged(cls, parts: Iterable["Summary"], max_rows: int = MAX_ROWS) -> "Summary":
        """Return the sum of *parts*."""
        total = cls(max_rows)
        for part in parts:
            for row in part._rows.copy().values():  # its thread may still be counting
                total.add(row)
            for op, row in part.others.items():
                total.others[op].add(row)
            total.other_msrs.update(part.other_msrs)
        return total

    def totals(self) -> dict[str, int]:
        """Return the total number of reads, writes and faults."""
        rows = [*self._rows.values(), *self.others.values()]
        return {
            "reads": sum(row.count for row in rows if row.op == Op.READ),
            "writes": sum(row.count for row in rows if row.op == Op.WRITE),
            "faults": sum(row.faults for row in rows),
        }

    def rest(self) -> str:
        """Return a line about the accesses that found no row, or "" if there are none."""
        accesses = sum(row.count for row in self.others.values())
        if not accesses:
            return ""
        least = "" if self.other_msrs.exact else "at least "
        msrs = counted(len(self.other_msrs), "other MSR")
        return f"… and {counted(accesses, 'access', 'accesses')} to {least}{msrs}"

    def as_dict(self) -> dict[str, Any]:
        """Return totals and rows in the form of the JSON summary."""
        accesses = sum(row.count for row in self.others.values())
        other = {
            "accesses": accesses,
            "msrs": len(self.other_msrs),
            "exact": self.other_msrs.exact,
        }
        return {
            "totals": self.totals(),
            "accesses": [row.as_dict() for row in self],
            **({"other": other} if accesses else {}),
        }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
