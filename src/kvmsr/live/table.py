# SPDX-License-Identifier: Apache-2.0
"""
The table of MSRs
-----------------

Only the lines that are on the screen are rendered, so it does not matter how many MSRs the guest
has chosen to access.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kvmsr.live.board import Board, Line, Sort
from kvmsr.live.columns import Column, columns

__all__ = ("MsrTable",)

_SORTED: Final = "▼"
_CHANGED: Final = "*"
_MARK: Final = 1  # the width of the mark before each line


class MsrTable(ScrollView, can_focus=True):
    """
    A line for each MSR, below the titles of the columns.

    Until the cursor is moved, it stays on the first line, whichever MSR that is; then it stays on
    its MSR. ``home`` brings it back to the first line.
    """

    DEFAULT_CSS = """
    MsrTable { height: 1fr; background: $surface; }
    MsrTable > .table--title { background: $panel; color: $text; text-style: bold; }
    MsrTable > .table--line { background: $surface; color: $foreground; }
    MsrTable > .table--quiet { color: $text-muted; }
    MsrTable > .table--cursor { background: $primary; color: $text; }
    MsrTable > .table--fault { color: $text-error; }
    MsrTable > .table--changed { color: $text-warning; text-style: bold; }
    MsrTable > .table--bars { color: $text-accent; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "table--title", "table--line", "table--quiet", "table--cursor", "table--fault",
        "table--changed", "table--bars",
    }  # fmt: skip
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "first", show=False),
        Binding("end", "last", show=False),
    ]

    class Selected(Message):
        """Another MSR is under the cursor."""

    class Titled(Message):
        """
        The title of a column was clicked.

        :ivar sort: what it stands for.
        """

        def __init__(self, sort: Sort) -> None:
            super().__init__()
            self.sort = sort

    def __init__(self, board: Board, *, id: str) -> None:
        super().__init__(id=id)
        self._board = board
        self._lines: Sequence[Line] = ()
        self._columns: list[Column] = []
        self._cursor = 0
        self._pinned: int | None = None
        self._sort = Sort.RATE
        self._changed: frozenset[int] = frozenset()
        self._now = 0.0

    @property
    def selected(self) -> Line | None:
        """Return the line under the cursor; None if there is none."""
        return self._lines[self._cursor] if self._cursor < len(self._lines) else None

    @property
    def lines(self) -> Sequence[Line]:
        """Return the lines, in order."""
        return self._lines

    def show(self, lines: Sequence[Line], sort: Sort, changed: frozenset[int], now: float) -> None:
        """
        Show these lines.

        :param sort: what they are sorted by.
        :param changed: the MSRs whose actions were changed.
        :param now: the time, in seconds.
        """
        before = self.selected
        self._lines, self._sort, self._changed, self._now = lines, sort, changed, now
        self._cursor = 0
        if self._pinned is not None:
            places = (n for n, line in enumerate(lines) if line.index == self._pinned)
            self._cursor = next(places, 0)
        self._lay_out()
        self._keep_in_sight()
        if self.selected is not before:
            self.post_message(self.Selected())
        self.refresh()

    def _lay_out(self) -> None:
        width = self.size.width
        self.virtual_size = Size(width, len(self._lines) + 1)
        self._columns = columns(max(width - _MARK, 1), self._board.widths)

    def on_resize(self, event: events.Resize) -> None:
        """Fit the columns to the new width."""
        self._lay_out()
        self._keep_in_sight()

    # The cursor

    def _select(self, place: int) -> None:
        if self._lines:
            self._cursor = min(max(place, 0), len(self._lines) - 1)
            self._pinned = self._lines[self._cursor].index
            self._keep_in_sight()
            self.refresh()
            self.post_message(self.Selected())

    def _keep_in_sight(self) -> None:
        top, rows = self.scroll_offset.y, max(self.size.height - 1, 1)
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False)
        elif self._cursor >= top + rows:
            self.scroll_to(y=self._cursor - rows + 1, animate=False)

    def action_move(self, by: int) -> None:
        """Move the cursor by some lines."""
        self._select(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by some screens."""
        self._select(self._cursor + by * max(self.size.height - 2, 1))

    def action_first(self) -> None:
        """Move the cursor to the first line, and let it stay there."""
        self._select(0)
        self._pinned = None

    def action_last(self) -> None:
        """Move the cursor to the last line."""
        self._select(len(self._lines) - 1)

    def on_click(self, event: events.Click) -> None:
        """Select the line, or sort by the column, that was clicked."""
        if event.y:
            self._select(event.y - 1 + self.scroll_offset.y)
            return
        left = _MARK
        for column in self._columns:
            if left <= event.x < left + column.width and column.sort is not None:
                self.post_message(self.Titled(column.sort))
            left += column.width + 1

    # The screen

    def render_line(self, y: int) -> Strip:
        """Return a line of the screen."""
        width = self.size.width
        if not y:
            style = self.get_component_rich_style("table--title")
            return Strip([Segment(self._titles(), style)]).adjust_cell_length(width, style)
        place = y - 1 + self.scroll_offset.y
        if place >= len(self._lines):
            return Strip.blank(width, self.get_component_rich_style("table--line"))
        line = self._lines[place]
        is_selected = place == self._cursor
        style = self.get_component_rich_style("table--cursor" if is_selected else "table--line")
        strip = Strip(list(self._segments(line, style, is_selected)))
        return strip.adjust_cell_length(width, style)

    def _titles(self) -> str:
        return " " * _MARK + " ".join(
            column.fitted(f"{column.title}{_SORTED}" if column.sort is self._sort else column.title)
            for column in self._columns
        )

    def _segments(self, line: Line, style: Style, is_selected: bool) -> Sequence[Segment]:
        """Return the cells of a line. Their texts have been made safe when they came in."""
        is_changed = line.index in self._changed
        mark = self._style("table--changed", style)
        found = [Segment((_CHANGED if is_changed else " ") * _MARK, mark)]
        quiet = line.history.rate(self._now) == 0 and not is_selected
        for column in self._columns:
            own = style
            if column.title == "faults" and line.faults:
                own = self._style("table--fault", style)
            elif column.title == "last minute" and not is_selected:
                own = self._style("table--bars", style)
            elif quiet:
                own = self._style("table--quiet", style)
            found += [Segment(column.text(line, self._now), own), Segment(" ", style)]
        return found

    def _style(self, name: str, around: Style) -> Style:
        """Return the colour of a component on the background of the line around it."""
        own = self.get_component_rich_style(name)
        return around + Style(color=own.color, bold=own.bold)
