# SPDX-License-Identifier: Apache-2.0
"""
The view
--------

Puts the parts together. What talks to the run does so in threads, so that the view never waits for
it: a run that does not answer is a line on the screen, and keys still work.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from kvmsr.errors import UsageError
from kvmsr.live.board import Board, Line, Sort
from kvmsr.live.changing import ChangingApp
from kvmsr.live.client import WatchedRun
from kvmsr.live.console import Tail
from kvmsr.live.head import head
from kvmsr.live.panes import Console, Detail
from kvmsr.live.poller import Poller
from kvmsr.live.screens import Choose, Confirm
from kvmsr.live.table import MsrTable
from kvmsr.text import counted

__all__ = ("LiveApp",)

_TICK_S: Final = 0.2
_LOW: Final = 18  # rows, below which there is only the table
_SHORT: Final = 28  # rows, below which the guest's output leaves no room for details
_NARROW: Final = 90  # columns, below which the last accesses are left out
_BRIGHT: Final = {"7", "15"}
_DARK, _LIGHT = "textual-dark", "textual-light"


class _Answered(Message):
    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__()
        self.answer = answer


class _Failed(Message):
    def __init__(self, why: str | None) -> None:
        super().__init__()
        self.why = why


class LiveApp(ChangingApp):
    """
    Shows a run.

    :param target: the run's name or process ID; "" to have the user choose one.
    :param runs: the status of each run to choose from.
    :param console: what the guest sends, if that is shown.
    :param ended: returns how the run ended, or "" while it goes on, if that is known better than
        by asking the run.
    """

    CSS = """
    #head { height: 2; padding: 0 1; background: $boost; }
    #head { text-wrap: nowrap; text-overflow: ellipsis; }
    #filter { display: none; }
    .narrow #recent { display: none; }
    .low Detail, .low Console, .low Footer, .short Detail { display: none; }
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "kvmsr"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter"),
        Binding("enter", "change", "Change"),
        Binding("l", "log", "Log"),
        Binding("u", "undo", "Undo"),
        Binding("w", "write", "Write policy"),
        Binding("o", "console", "Output"),
        Binding("x", "stop", "Stop guest"),
        Binding("t", "theme", "Theme"),
        Binding("escape", "unfilter", show=False),
        Binding("ctrl+c", "quit", show=False),
    ]

    def __init__(
        self,
        target: str,
        *,
        runs: Sequence[Mapping[str, Any]] = (),
        console: Tail | None = None,
        ended: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__()
        self.board = Board(time.monotonic())
        self._target, self._runs = target, runs
        self._console = console
        self._how_ended = ended
        self._sort, self._words = Sort.RATE, ""
        self._trouble = ""
        self.theme = _LIGHT if os.environ.get("COLORFGBG", "").split(";")[-1] in _BRIGHT else _DARK

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        yield Static(id="head")
        yield MsrTable(self.board, id="table")
        yield Input(
            placeholder="words of a name, number, reason or rule", id="filter", compact=True
        )
        yield Detail()
        if self._console is not None:
            yield Console(self._console)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to watch."""
        self._table.focus()
        # SIGHUP ends the process at once: without a terminal, the view could not be taken down.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self.set_interval(_TICK_S, self._look_for_end)
        if self._target:
            self._watch(self._target)
        else:
            self.push_screen(Choose(self._runs), self._chosen)

    def _chosen(self, target: str | None) -> None:
        if target is None:
            self.exit()
        else:
            self._watch(target)

    def _watch(self, target: str) -> None:
        try:
            self.run_watched = WatchedRun(target)
        except UsageError as error:
            self._end(str(error))
            return
        self.poller = Poller(
            self.run_watched,
            lambda answer: self.post_message(_Answered(answer)),
            lambda why: self.post_message(_Failed(why)),
        )

    def on_unmount(self) -> None:
        """Ask no more."""
        if self.poller is not None:
            self.poller.close()

    def on_resize(self, event: events.Resize) -> None:
        """Leave out what there is no room for."""
        height = event.size.height
        self._base.set_class(height < _LOW, "low")
        self._base.set_class(self._console is not None and height < _SHORT, "short")
        self._base.set_class(event.size.width < _NARROW, "narrow")

    # What the run says

    def on__answered(self, message: _Answered) -> None:
        """Show an answer."""
        if not self._is_shown:
            return
        now = time.monotonic()
        self.answer = message.answer
        if not self.ended:
            self._trouble = ""
        elif self.poller is not None:
            self.poller.close()  # these are the last numbers
        self.board.take(message.answer["rows"], now)
        self._show(now)

    def on__failed(self, message: _Failed) -> None:
        """Show that there is no answer."""
        if not self._is_shown:
            return
        if message.why is None:
            self._end(self._how_ended() or "the run has ended")
        else:
            self._trouble = message.why
            self._show_head(time.monotonic())

    def _look_for_end(self) -> None:
        how = self._how_ended()
        if how and self.ended != how:
            self._end(how)

    def _end(self, how: str) -> None:
        self.ended = how
        self._trouble = f"ended: {how}"
        self._show(time.monotonic())

    def _show(self, now: float) -> None:
        lines = self.board.sorted(self._sort, self._words, now)
        changed = frozenset(self.answer["changed"]) if self.answer else frozenset()
        self._table.show(lines, self._sort, changed, now)
        self._show_head(now)
        self._show_detail()

    def _show_head(self, now: float) -> None:
        if self.answer is None:
            self._base.query_one("#head", Static).update(Text(self._trouble or "…"))
            return
        lines = self._table.lines
        shown = f"{counted(len(lines), 'MSR')} by {self._sort}"
        if self._words:
            shown = f"{len(lines):,} of {counted(len(self.board.lines), 'MSR')}: {self._words}"
        if self.answer["rest"]:
            shown += f" {self.answer['rest']}"
        rate = self.board.history.rate(now)
        top = self._base.query_one("#head", Static)
        top.update(
            head(self.answer, rate, shown, self._trouble, top.content_size.width), layout=False
        )

    @property
    def _base(self) -> Screen[object]:
        """Return the screen with the table, also while another one is on top of it."""
        return self.screen_stack[0]

    @property
    def _is_shown(self) -> bool:
        """Return whether there is a table; a message may come when there is none any more."""
        return bool(self.screen_stack and self._base.query(MsrTable))

    @property
    def selected(self) -> Line | None:
        """Return the line of the MSR that is selected; None if there is none."""
        return self._table.selected

    @property
    def _table(self) -> MsrTable:
        return self._base.query_one(MsrTable)

    def _show_detail(self) -> None:
        line = self._table.selected
        if line is None:
            return
        msr = self.said_of_selected()
        vms, vcpus = (self.answer["vms"], self.answer["vcpus"]) if self.answer else (1, 1)
        self._base.query_one(Detail).show(line, msr, vms=vms, vcpus=vcpus)

    def on_msr_table_selected(self) -> None:
        """Ask about the MSR that is selected now."""
        line = self._table.selected
        if self.poller is not None and line is not None and self.poller.msr != line.index:
            self.poller.msr = line.index
            self.poller.wake()
        self._show_detail()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key means something now."""
        return action != "console" or self._console is not None

    def action_console(self) -> None:
        """Show or hide what the guest sends."""
        for console in self._base.query(Console):
            console.display = not console.display

    # Order

    def action_sort(self) -> None:
        """Sort by something else."""
        ways = list(Sort)
        self._sort_by(ways[(ways.index(self._sort) + 1) % len(ways)])

    def on_msr_table_titled(self, message: MsrTable.Titled) -> None:
        """Sort by a column."""
        self._sort_by(message.sort)

    def _sort_by(self, sort: Sort) -> None:
        self._sort = sort
        self._show(time.monotonic())

    def action_filter(self) -> None:
        """Ask for words to filter by."""
        box = self._base.query_one("#filter", Input)
        box.display = True
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while words are typed."""
        if event.input.id == "filter":
            self._words = event.value
            self._show(time.monotonic())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go back to the table."""
        if event.input.id == "filter":
            event.input.display = bool(event.value)
            self._table.focus()

    def action_unfilter(self) -> None:
        """Show all MSRs again."""
        box = self._base.query_one("#filter", Input)
        box.value, box.display = "", False
        self._table.focus()

    def action_theme(self) -> None:
        """Change between dark and light."""
        self.theme = _LIGHT if self.theme == _DARK else _DARK

    # The end

    async def action_quit(self) -> None:
        """Leave, after a question if that ends the run."""
        if self._console is None or self.ended:
            self.exit()
        else:
            question = "Leave, and end the run, as Ctrl-C does?"
            self.push_screen(Confirm(question, "Leave"), self._leave)

    def _leave(self, sure: bool | None) -> None:
        if sure:
            self.exit()
