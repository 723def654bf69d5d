# SPDX-License-Identifier: Apache-2.0
"""
Panes
-----

What is below the table: the MSR that is selected, and the guest's output.
"""

from collections.abc import Mapping
from typing import Any, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Log, Static

from kvmsr.live.board import Line
from kvmsr.live.console import Cleaner, Tail, Wrapper
from kvmsr.live.detail import about, fields, heading, recent
from kvmsr.text import counted

__all__ = ("Console", "Detail")

_TICK_S: Final = 0.1
_LINES: Final = 5000
_WIDE: Final = 130


class Detail(Vertical):
    """The MSR that is selected: what happens to it, the fields of its value, its last accesses."""

    DEFAULT_CSS = """
    Detail { height: 12; border-top: solid $primary-muted; padding: 0 1; }
    Detail #heading { height: 1; }
    Detail #about { height: 3; }
    Detail Static { text-wrap: nowrap; text-overflow: ellipsis; }
    Detail #fields { width: 1fr; scrollbar-size: 1 1; }
    Detail #recent { width: 45%; min-width: 56; padding-left: 2; scrollbar-size: 1 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, Text] = {}  # rendering takes longer than comparing
        self._value: tuple[int, int | None, int] | None = None

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        yield Static(id="heading")
        yield Static(id="about")
        with Horizontal():
            yield VerticalScroll(Static(id="of_value"), id="fields")
            yield VerticalScroll(Static(id="accesses"), id="recent")

    def show(self, line: Line, msr: Mapping[str, Any] | None, *, vms: int, vcpus: int) -> None:
        """
        Show an MSR.

        :param msr: what the run said about it; None if it has not said anything yet.
        :param vms: the number of VMs; so is *vcpus* that of vCPUs.
        """
        texts = {
            "heading": heading(line),
            "about": about(line, msr),
            "accesses": recent(msr, vms=vms, vcpus=vcpus),
        }
        for name, text in texts.items():
            if text != self._shown.get(name):
                self._shown[name] = text
                self.query_one(f"#{name}", Static).update(text, layout=name == "accesses")
        value = line.index, line.last_value, self.size.width
        if value != self._value:
            self._value = value
            self.query_one("#of_value", Static).update(
                fields(line, briefly=self.size.width < _WIDE)
            )


class Console(Log):
    """
    What the guest sends, and what its run logs.

    :param tail: where that comes from.
    """

    DEFAULT_CSS = """
    Console { height: 25%; min-height: 4; border-top: solid $primary-muted; padding: 0 1; }
    Console { scrollbar-size: 1 1; overflow-x: hidden; scrollbar-gutter: stable; }
    """

    def __init__(self, tail: Tail) -> None:
        super().__init__(max_lines=_LINES)
        self._tail, self._cleaner, self._wrapper = tail, Cleaner(), Wrapper()

    def on_mount(self) -> None:
        """Begin to take what comes."""
        self.set_interval(_TICK_S, self._take)

    def _take(self) -> None:
        data, lost = self._tail.take()
        if lost:
            data = f"\n… {counted(lost, 'byte')} left out …\n".encode() + data
        if data:
            width = max(self.scrollable_content_region.width, 1)
            self.write(self._wrapper.wrap(self._cleaner.clean(data), width))
