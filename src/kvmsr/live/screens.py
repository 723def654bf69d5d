# SPDX-License-Identifier: Apache-2.0
"""
Questions to the user
---------------------
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, OptionList, Select
from textual.widgets.option_list import Option

from kvmsr.policy import Log
from kvmsr.text import one_line

__all__ = ("Change", "Choose", "Confirm", "SaveAs")

_CSS: Final = """
%(name)s { align: center middle; background: $background 60%%; }
%(name)s > VerticalScroll {
    width: 66; max-width: 100%%; height: auto; max-height: 100%%;
    background: $panel; padding: 1 2; border: round $primary;
}
%(name)s Label { width: 1fr; }
%(name)s .row { height: auto; }
%(name)s .row Label { width: 24; }
%(name)s .row Select, %(name)s .row Input { width: 1fr; }
%(name)s .note { color: $text-muted; margin-bottom: 1; }
%(name)s .wrong { color: $text-error; }
%(name)s .buttons { height: auto; align-horizontal: right; margin-top: 1; }
%(name)s Button { margin-left: 2; }
%(name)s.-tiny > VerticalScroll { padding: 0 1; border: none; }
%(name)s.-tiny .buttons { margin-top: 0; }
%(name)s.-tiny Button { min-width: 6; margin-left: 1; }
"""
_NUMBER: Final = "value"
_SHADOW: Final = "shadow"
_WRITES: Final = ("ignore", "fault", "kernel", _SHADOW)
_READS: Final = (_NUMBER, *_WRITES)
_KEPT: Final = "as the policy says"
_CANCEL: Final[list[BindingType]] = [Binding("escape", "cancel", "Cancel")]
_MAX: Final = 1 << 64


class _Question(ModalScreen[Any]):
    """A screen that is left with an answer, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = _CANCEL

    def __init__(self) -> None:
        super().__init__()
        self.VERTICAL_BREAKPOINTS = [(0, "-tiny"), (12, "-roomy")]

    def action_cancel(self) -> None:
        """Leave without an answer."""
        self.dismiss(None)


class Confirm(_Question):
    """
    Asks whether to do something. The answer is whether to.

    :param question: the question.
    :param action: the button that says so.
    """

    DEFAULT_CSS = _CSS % {"name": "Confirm"}
    BINDINGS: ClassVar[list[BindingType]] = [
        *_CANCEL,
        Binding("y", "answer(True)", "Yes"),
        Binding("n", "answer(False)", "No"),
    ]

    def __init__(self, question: str, action: str) -> None:
        super().__init__()
        self._question, self._action = question, action

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        with VerticalScroll(can_focus=False):
            yield Label(Text(one_line(self._question)))
            with Horizontal(classes="buttons"):
                yield Button("No (n)", id="no", compact=True)
                yield Button(f"{self._action} (y)", id="yes", variant="error", compact=True)

    def on_mount(self) -> None:
        """Let Enter mean no."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Answer."""
        self.dismiss(answer)


class SaveAs(_Question):
    """
    Asks for a file. The answer is its path.

    :param file: what to suggest.
    """

    DEFAULT_CSS = _CSS % {"name": "SaveAs"}

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        with VerticalScroll(can_focus=False):
            yield Label("Write the policy in force, with its changes, to")
            yield Input(self._file, id="file")
            yield Label("Enter writes it, Esc goes back.", classes="note")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer with the path, if there is one."""
        if event.value.strip():
            self.dismiss(Path(event.value.strip()).expanduser())


class Choose(_Question):
    """
    Asks which run to watch. The answer is its process ID.

    :param runs: the status of each.
    """

    DEFAULT_CSS = _CSS % {"name": "Choose"}

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self._runs = runs

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        with VerticalScroll(can_focus=False):
            yield Label("Which run?")
            yield OptionList(*(Option(_described(one), id=str(one["pid"])) for one in self._runs))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer."""
        self.dismiss(event.option.id)


def _described(run: Mapping[str, Any]) -> Text:
    text = Text(f"{run['pid']}", "bold").append(f" {one_line(run['name'])}" if run["name"] else "")
    return text.append(f"  {run['kind']} {one_line(run['command'])}", "dim")


class Change(_Question):
    """
    Asks what is to happen to accesses to an MSR. The answer is a change, as
    :func:`kvmsr.policy.live.changed` takes it.

    :param msr: the MSR's number and name.
    :param given: how it was changed so far.
    :param value: the value to suggest; None for none.
    """

    DEFAULT_CSS = _CSS % {"name": "Change"}
    BINDINGS: ClassVar[list[BindingType]] = [*_CANCEL, Binding("ctrl+s", "apply", "Apply")]

    def __init__(self, msr: str, given: Mapping[str, Any], value: int | None) -> None:
        super().__init__()
        self._msr, self._given = msr, given
        self._value = given.get("reset", value)
        if isinstance(given.get("read"), int):
            self._value = given["read"]

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        read = self._given.get("read")
        with VerticalScroll(can_focus=False):
            yield Label(Text(self._msr, "bold"))
            yield Label("From the next access on. u undoes it.", classes="note")
            yield from _row("Reads", "read", _READS, _NUMBER if isinstance(read, int) else read)
            yield from _row("Writes", "write", _WRITES, self._given.get("write"))
            with Horizontal(classes="row"):
                yield Label("Value, or initial value")
                suggested = "" if self._value is None else f"{self._value:#x}"
                yield Input(suggested, id="value", compact=True, select_on_focus=True)
            yield from _row("Log", "log", list(map(str, Log)), self._given.get("log"))
            yield Label("", classes="wrong", id="wrong")
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button("Apply (Ctrl-S)", id="apply", variant="primary", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        if event.button.id == "apply":
            self.action_apply()
        else:
            self.dismiss(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer."""
        self.action_apply()

    def on_select_changed(self, event: Select.Changed) -> None:
        """Go on to the value where one is needed."""
        if event.value in (_NUMBER, _SHADOW) and event.select.has_focus_within:
            self.query_one("#value").focus()

    def action_apply(self) -> None:
        """Answer, if everything is right."""
        change: dict[str, str | int | None] = {
            key: select.value
            for key in ("read", "write", "log")
            if isinstance((select := self.query_one(f"#{key}", Select)).value, str)
        }
        number, text = None, self.query_one("#value", Input).value.strip()
        if _NUMBER in change.values() or _SHADOW in change.values():
            number = _number(text)
            if number is None:
                self._refuse(f"{text or 'nothing'} is not a value: write 0x35 or 53")
                return
        if change.get("read") == _NUMBER:
            change["read"] = number
        if _SHADOW in (change.get("read"), change.get("write")):
            change["reset"] = number
        self.dismiss(change)

    def _refuse(self, why: str) -> None:
        self.query_one("#wrong", Label).update(Text(one_line(why)))
        self.query_one("#value").focus()


def _row(label: str, key: str, words: Sequence[str], chosen: str | None) -> ComposeResult:
    with Horizontal(classes="row"):
        yield Label(label)
        options = [(word, word) for word in words]
        value = Select.NULL if chosen is None else chosen
        yield Select(options, prompt=_KEPT, value=value, id=key, compact=True)


def _number(text: str) -> int | None:
    """Return a value of an MSR; None if *text* is none. Nothing is 0."""
    try:
        number = int(text or "0", 0)
    except ValueError:
        return None
    return number if 0 <= number < _MAX else None
