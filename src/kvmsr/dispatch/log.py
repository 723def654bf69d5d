# SPDX-License-Identifier: Apache-2.0
"""
The access log
--------------

Log accesses while the guest runs. The guest chooses the MSRs, so the log remembers a limited number
of them, and says so when it reaches that limit.
"""

from collections.abc import Callable
from typing import Final

from kvmsr.dispatch.outcome import Outcome, Verdict
from kvmsr.msr import catalog
from kvmsr.policy import Access, Log, Op
from kvmsr.text import one_line

__all__ = ("MAX_MARKS", "AccessLog", "Sink", "describe")

MAX_MARKS: Final = 4096

Act = Callable[[Access], Outcome]
Sink = Callable[[Access, Outcome, str], None]
"""Receives an access, its outcome, and the log line."""


class AccessLog:
    """
    Writes the log of accesses.

    If two vCPUs make the same access at the same moment, both may be logged: preventing that is not
    worth a lock.

    :param sink: receives what is logged; None logs nothing.
    :param max_marks: number of MSRs that the log remembers.
    """

    def __init__(self, sink: Sink | None, max_marks: int = MAX_MARKS) -> None:
        self._sink = sink
        self._max_marks = max_marks
        self._seen: set[tuple[str, Op, int]] = set()
        self._last: dict[tuple[str, Op, int, int], int] = {}
        self._full = False
        self._ways: dict[Log | None, Callable[[Access, Outcome], None]] = {
            Log.NEVER: lambda access, outcome: None,
            Log.ONCE: self._once,
            Log.CHANGE: self._change,
            Log.ALWAYS: self._emit,
            None: self._fault_once,
        }

    @property
    def listens(self) -> bool:
        """Whether there is a sink."""
        return self._sink is not None

    def see(self, access: Access, outcome: Outcome, log: Log | None) -> None:
        """Log an access as often as *log* says; None logs each MSR's faults once."""
        self._ways[log](access, outcome)

    def around(self, act: Act, log: Log | None) -> Act:
        """Return *act*, logged as often as *log* says; None logs each MSR's faults once."""
        if self._sink is None or log is Log.NEVER:
            return act
        see = self._ways[log]

        def logged(access: Access) -> Outcome:
            outcome = act(access)
            if outcome.verdict is not Verdict.KERNEL:  # which is not final
                see(access, outcome)
            return outcome

        return logged

    def _emit(self, access: Access, outcome: Outcome) -> None:
        if self._sink is not None:
            self._sink(access, outcome, describe(access, outcome))

    def _fault_once(self, access: Access, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.FAULT:
            self._once(access, outcome)

    def _once(self, access: Access, outcome: Outcome) -> None:
        mark = (outcome.rule, access.op, access.index)
        if mark in self._seen:
            return
        if len(self._seen) >= self._max_marks:
            self._emit_full(access, outcome)
            return
        self._seen.add(mark)
        self._emit(access, outcome)

    def _change(self, access: Access, outcome: Outcome) -> None:
        mark = (outcome.rule, access.op, access.index, access.vcpu)
        value = outcome.value if access.op == Op.READ else access.value
        if outcome.verdict is Verdict.FAULT:
            value = -1  # differs from every value
        if self._last.get(mark) == value:
            return
        if mark not in self._last and len(self._last) >= self._max_marks:
            self._emit_full(access, outcome)
            return
        self._last[mark] = value
        self._emit(access, outcome)

    def _emit_full(self, access: Access, outcome: Outcome) -> None:
        if not self._full and self._sink is not None:
            self._full = True
            text = f"{self._max_marks:,} MSRs have been logged: other MSRs are no longer logged"
            self._sink(access, outcome, text)


def describe(access: Access, outcome: Outcome) -> str:
    """Return the log line for *access* and its outcome."""
    name = catalog().name(access.index)
    msr = f"MSR {access.index:#x}{f' ({name})' if name else ''}"
    if access.op == Op.READ:
        what = f"read of {msr}"
        became = {Verdict.VALUE: f"{outcome.value:#x}"}
    else:
        what = f"write of {access.value:#x} to {msr}"
        became = {Verdict.DONE: "done"}
    became |= {Verdict.FAULT: "#GP(0)", Verdict.STOP: "the run stops"}
    result = became.get(outcome.verdict, outcome.verdict.value)
    where = "" if access.where is None else f" at {access.where}"
    return one_line(
        f"vCPU {access.vcpu}: {what}: {result} ({outcome.rule}; {access.reason}){where}"
    )
