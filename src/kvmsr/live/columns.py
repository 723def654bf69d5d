# SPDX-License-Identifier: Apache-2.0
"""
Columns
-------

Which columns the table of MSRs has on a terminal of some width, and what is in them.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from kvmsr.live.board import Line, Sort
from kvmsr.live.history import sparkline

__all__ = ("Column", "columns", "short")

_UNITS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Column(NamedTuple):
    """
    A column of the table.

    :ivar title: its title.
    :ivar width: in characters.
    :ivar right: whether it is aligned on the right.
    :ivar cell: returns what is in it, for a line, a time in seconds, and the width.
    :ivar sort: what a click on its title sorts by, if anything.
    """

    title: str
    width: int
    right: bool
    cell: Callable[[Line, float, int], str]
    sort: Sort | None = None

    def text(self, line: Line, now: float) -> str:
        """Return the cell of *line*, as wide as the column."""
        return self.fitted(self.cell(line, now, self.width))

    def fitted(self, text: str) -> str:
        """Return *text*, as wide as the column."""
        if len(text) > self.width:
            text = f"{text[: self.width - 1]}…"
        return text.rjust(self.width) if self.right else text.ljust(self.width)


class _Kind(NamedTuple):
    """
    What a column is like.

    :ivar least: the width below which it is left out, unless its texts need less; *most* is the
        greatest.
    :ivar left_out: the column with the highest number is left out first.
    :ivar measured: which of the longest texts is its own.
    """

    title: str
    least: int
    most: int
    right: bool
    cell: Callable[[Line, float, int], str]
    sort: Sort | None
    left_out: int
    measured: str = ""


def short(number: float) -> str:
    """Return a number in six characters at most: ``0``, ``0.4``, ``12.3k``."""
    for size, unit in _UNITS:
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:.0f}{unit}"
    if number == int(number) or number >= 99.95:
        return f"{number:.0f}"
    return f"{number:.1f}"


def _index(line: Line, now: float, width: int) -> str:
    return f"{line.index:#x}"


def _value(line: Line, now: float, width: int) -> str:
    return "" if line.last_value is None else f"{line.last_value:#x}"


def _rate(line: Line, now: float, width: int) -> str:
    return short(line.history.rate(now))


def _minute(line: Line, now: float, width: int) -> str:
    return sparkline(line.history.bars(now, width))


def _of(name: str) -> Callable[[Line, float, int], str]:
    """Return the cells of a column that shows an attribute of lines."""

    def cell(line: Line, now: float, width: int) -> str:
        value = getattr(line, name)
        return value if isinstance(value, str) else short(value)

    return cell


_KINDS: Final = (
    _Kind("index", 10, 10, True, _index, Sort.INDEX, 0, "index"),
    _Kind("name", 24, 40, False, _of("name"), None, 2, "name"),
    _Kind("reads", 6, 6, True, _of("reads"), Sort.COUNT, 4),
    _Kind("writes", 6, 6, True, _of("writes"), None, 5),
    _Kind("faults", 7, 7, True, _of("faults"), Sort.FAULTS, 6),
    _Kind("rate/s", 7, 7, True, _rate, Sort.RATE, 1),
    _Kind("last value", 18, 18, True, _value, None, 3, "value"),
    _Kind("reason", 7, 7, False, _of("reason"), None, 9),
    _Kind("rule", 30, 40, False, _of("rule"), None, 8, "rule"),
    _Kind("last minute", 10, 30, False, _minute, None, 7),
)


def columns(width: int, longest: Mapping[str, int]) -> list[Column]:
    """
    Return the columns for *width* characters, with a space between them.

    What there is no room for is left out: the reason first, and the index never.

    :param longest: the longest texts so far; see :class:`~kvmsr.live.board.Board`.
    """
    kinds = list(_KINDS)
    while len(kinds) > 1 and _total([_least(kind, longest) for kind in kinds]) > width:
        kinds.remove(max(kinds, key=lambda kind: kind.left_out))
    widths = [_least(kind, longest) for kind in kinds]
    left = max(width - _total(widths), 0)
    for place, kind in enumerate(kinds):
        added = min(left, max(_wanted(kind, longest) - widths[place], 0))
        widths[place] += added
        left -= added
    return [
        Column(kind.title, min(size, width), kind.right, kind.cell, kind.sort)
        for kind, size in zip(kinds, widths, strict=True)
    ]


def _total(widths: list[int]) -> int:
    return sum(widths) + len(widths) - 1


def _wanted(kind: _Kind, longest: Mapping[str, int]) -> int:
    """Return the width that the texts need."""
    if not kind.measured:
        return kind.most
    return min(max(longest[kind.measured], len(kind.title) + 1), kind.most)


def _least(kind: _Kind, longest: Mapping[str, int]) -> int:
    """Return the width below which a column is left out."""
    return min(kind.least, _wanted(kind, longest))
