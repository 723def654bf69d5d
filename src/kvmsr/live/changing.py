# SPDX-License-Identifier: Apache-2.0
"""
Changing the run
----------------

What the keys of the view do to the run. Each request is made in a thread, and a message says how
it went.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from textual.app import App
from textual.message import Message

from kvmsr.errors import KvmsrError
from kvmsr.live.board import Line
from kvmsr.live.client import Ended, WatchedRun, write_policy
from kvmsr.live.poller import Poller
from kvmsr.live.screens import Change, Confirm, SaveAs

__all__ = ("ChangingApp",)


class _Said(Message):
    def __init__(self, text: str, severity: str) -> None:
        super().__init__()
        self.text, self.severity = text, severity


class ChangingApp(App[None]):
    """
    The part of the view that changes the run.

    :ivar run_watched: the run; None before it is found.
    :ivar poller: asks it; None before it is found.
    :ivar answer: what it answered last; None if it has not answered yet.
    :ivar ended: how it ended; "" while it goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_watched: WatchedRun | None = None
        self.poller: Poller | None = None
        self.answer: dict[str, Any] | None = None
        self.ended = ""
        self._changing = threading.Lock()
        self._policy_text = ""  # as of the last change made here

    @property
    @abstractmethod
    def selected(self) -> Line | None:
        """Return the line of the MSR that is selected; None if there is none."""

    def said_of_selected(self) -> dict[str, Any] | None:
        """Return what the run said about the MSR that is selected, if it has."""
        line, said = self.selected, self.answer and self.answer["msr"]
        return said if said and line is not None and said["index"] == line.index else None

    def _do(
        self,
        what: Callable[[WatchedRun], Sequence[str]],
        done: str,
        *,
        even_if_ended: bool = False,
    ) -> None:
        """Have the run do something in a thread, and say how that went."""
        run = self.run_watched
        if run is None or (self.ended and not even_if_ended):
            self.notify("the run has ended", severity="warning", markup=False)
            return

        def work() -> None:
            try:
                with self._changing:
                    warnings = what(run)
            except Ended:
                self.post_message(_Said("the run has ended", "warning"))
            except (KvmsrError, OSError) as error:
                self.post_message(_Said(str(error), "error"))
            else:
                self.post_message(_Said(done, "information"))
                for warning in warnings:
                    self.post_message(_Said(warning, "warning"))
            if self.poller is not None:
                self.poller.wake()

        threading.Thread(target=work, name="change", daemon=True).start()

    def on__said(self, message: _Said) -> None:
        """Show a message."""
        self.notify(message.text, severity=message.severity, markup=False)  # type: ignore[arg-type]

    def _change(self, index: int, name: str, change: dict[str, Any] | None) -> None:
        if change is not None:
            self._do(self._keeping(lambda run: run.change(index, change)), f"{name} was changed")

    def action_change(self) -> None:
        """Ask what is to happen to the MSR that is selected."""
        line, msr = self.selected, self.said_of_selected()
        if line is None or msr is None or self.ended:
            return
        index, name = line.index, f"{line.index:#x} {line.name}".strip()
        screen = Change(name, msr["given"], line.values.get("read", line.last_value))
        self.push_screen(screen, lambda change: self._change(index, name, change))

    def action_log(self) -> None:
        """Log all accesses to the MSR that is selected, or no longer do that."""
        line, msr = self.selected, self.said_of_selected()
        if line is None or msr is None:
            return
        change = dict(msr["given"])
        if change.pop("log", None) is None:
            change["log"] = "always"
        self._change(line.index, f"{line.index:#x} {line.name}".strip(), change)

    def action_undo(self) -> None:
        """Undo the last change."""
        self._do(self._keeping(lambda run: run.undo()), "undone")

    def _keeping(
        self, change: Callable[[WatchedRun], list[str]]
    ) -> Callable[[WatchedRun], list[str]]:
        """Return *change*, after which the policy is kept: the run may end before it is written."""

        def changed(run: WatchedRun) -> list[str]:
            warnings = change(run)
            self._policy_text = run.policy_text()
            return warnings

        return changed

    def action_stop(self) -> None:
        """Ask whether to end the run, and do so."""

        def stop(run: WatchedRun) -> Sequence[str]:
            run.stop()
            return ()

        def answered(answer: bool | None) -> None:
            if answer:
                self._do(stop, "the run is about to end")

        if not self.ended:
            self.push_screen(Confirm("End the run, with its summary?", "Stop"), answered)

    # Writing the policy

    def action_write(self) -> None:
        """Ask for a file, and write the policy in force."""
        if self.answer is None:
            return
        name = self.answer["name"] or Path(str(self.answer["command"]).split()[0]).stem
        self.push_screen(SaveAs(f"{name}-live.toml"), self._write)

    def _write(self, file: Path | None) -> None:
        if file is None:
            return

        def answered(answer: bool | None) -> None:
            if answer:
                self._do_write(file, replace=True)

        if file.exists():
            question = f"{file} exists. Replace it? What is in it will be lost."
            self.push_screen(Confirm(question, "Replace"), answered)
        else:
            self._do_write(file, replace=False)

    def _do_write(self, file: Path, *, replace: bool) -> None:
        def write(run: WatchedRun) -> Sequence[str]:
            try:
                text = run.policy_text()
            except Ended:
                text = self._policy_text
                if not text:
                    raise
            write_policy(file, text, replace=replace)
            return ()

        self._do(write, f"written to {file}", even_if_ended=True)
