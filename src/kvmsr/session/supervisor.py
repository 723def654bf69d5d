# SPDX-License-Identifier: Apache-2.0
"""
The supervisor
--------------

A policy may contain Python of its owner's, and that code can do things that no other thread of the
process survives. It can hold the interpreter for good (``sum(range(10**12))`` never releases it),
crash it, or end the process as if all were well (``os._exit(0)``). The run must still end, on time,
with a summary, and with an exit status that shows what went wrong.

So if a policy contains such code, the process forks. The child does the work. The parent is the
*supervisor*, and runs none of that code:

* Before the guest runs, the child sends the supervisor everything that a result needs, including
  the memory in which C counts accesses. When the guest has ended, the child reports that.
* Signals to the process reach the supervisor, which passes them on. Signals from the terminal reach
  both processes by themselves. If the child does not end soon after a signal or after its timeout,
  the supervisor kills it.
* If the child ends before it has reported the guest's end, the supervisor makes the result: from
  the shared memory if C evaluated the policy, and otherwise without a summary.
* If the supervisor is killed, the child must not live on. The kernel sends it SIGKILL as soon as
  the supervisor's end of the line between them is closed, which works even if the child's
  interpreter is stuck.
"""

import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kvmsr.native.block import Block
from kvmsr.native.summary import native_summary
from kvmsr.native.table import Names
from kvmsr.policy import Model, Policy, Python
from kvmsr.session.result import FAILED, INTERRUPTED, TIMEOUT, End, EndKind, RunResult
from kvmsr.session.session import Session
from kvmsr.trace import Summary

__all__ = ("PATIENCE", "Witness", "runs_code", "supervise")

PATIENCE: Final = 4.5
"""Seconds that a child may take to end after a signal or its timeout; it aims for fewer."""

_MORE_PATIENCE: Final = 25.0
_ENOUGH_WORK: Final = 1.0
_PAUSE: Final = 0.1
_MOST: Final = 1 << 16
_BY_THE_KERNEL: Final = 0x80  # SI_KERNEL of asm-generic/siginfo.h; the terminal's signals have it
_EXIT_CODE: Final = 49  # in /proc/…/stat, after the command's name: field 52 of proc(5)
_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def runs_code(policy: Policy) -> bool:
    """Return whether *policy* runs Python that does not come with kvmsr."""
    actions = [action for rule in policy.rules for action in (rule.read, rule.write)]
    return any(
        isinstance(action, Python)
        or (isinstance(action, Model) and not action.cls.__module__.startswith("kvmsr."))
        for action in actions
    )


class Witness:
    """
    The child's line to its supervisor.

    :param line: the line; None if there is no supervisor, and nothing is sent.
    """

    def __init__(self, line: socket.socket | None = None) -> None:
        self._line = line

    @property
    def watched(self) -> bool:
        """Whether there is a supervisor."""
        return self._line is not None

    @property
    def front(self) -> int:
        """Return the process ID that users see: the supervisor's, or else this process's."""
        return os.getppid() if self.watched else os.getpid()

    def begin(
        self,
        session: Session,
        image: str,
        *,
        timeout: float | None = None,
        state: Path | None = None,
    ) -> None:
        """
        Report that the guest is about to run.

        :param session: the policy at work.
        :param image: the image or command that is run, for people.
        :param timeout: the run's timeout in seconds; None if it has none.
        :param state: the file in which the run keeps its registers; None if there is none.
        """
        run = {
            "backend": session.backend,
            "image": image,
            "timeout": timeout,
            "state": None if state is None else str(state),
            **_policy_of(session, session.plan.policy),
        }
        self._send_long({"begins": True}, run, [session.shared.block.fd] if session.shared else [])

    def changes(self, session: Session, policy: Policy) -> None:
        """Report that another policy is about to come into force."""
        self._send_long({}, _policy_of(session, policy), [])

    def _send_long(self, message: dict[str, Any], more: dict[str, Any], fds: list[int]) -> None:
        """Send *more* along with *message*; it may be too long for a message."""
        if self._line is not None:
            with os.fdopen(os.memfd_create("kvmsr-run"), "w") as file:
                json.dump(more, file)
                file.flush()
                self._send(message, [file.fileno(), *fds])

    def vmm(self, pid: int) -> None:
        """Report the process that runs the guest, if it is not this one."""
        self._send({"vmm": pid})

    def background(self) -> None:
        """Report that the VMM's first process has ended, but others of the run have not."""
        self._send({"background": True})

    def end(self) -> None:
        """Report that the guest has ended: from now on, the child's exit status is the run's."""
        self._send({"ended": True})

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._line is not None:
            with suppress(OSError):  # without a supervisor, this process is about to be killed
                socket.send_fds(self._line, [json.dumps(message).encode()], fds or [])


def _policy_of(session: Session, policy: Policy) -> dict[str, Any]:
    """Return what a result needs to know about the policy in force."""
    names = session.shared.names.known() if session.shared else []
    return {"policy": policy.source or policy.name, "names": names}


def supervise(
    policy: Policy, report: Callable[[RunResult], None], *, reloads: bool = False
) -> Witness:
    """
    Fork if *policy* runs code of its owner's, and return in the child.

    The supervisor does not return; it exits with the run's status. Call this before any thread is
    started.

    :param report: prints the result of a run if the child could not.
    :param reloads: whether SIGHUP reloads the policy, so that it is for the child alone.
    """
    if not runs_code(policy):
        return Witness()
    line, childs_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, signal.SIGCHLD})
    child = os.fork()
    if not child:
        line.close()
        _die_with(childs_line)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Witness(childs_line)
    childs_line.close()
    sys.exit(_Supervisor(child, line, report, reloads).run())


def _die_with(line: socket.socket) -> None:
    """Let the kernel kill this process when the other end of *line* is closed."""
    fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(line, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(line, fcntl.F_SETFL, os.O_ASYNC)


class _Supervisor:
    def __init__(
        self,
        child: int,
        line: socket.socket,
        report: Callable[[RunResult], None],
        reloads: bool,
    ) -> None:
        self._child = child
        self._line = line
        self._report = report
        self._reloads = reloads
        self._reported: dict[str, Any] = {}
        self._block: Block | None = None
        self._begun = 0.0
        self._deadline: float | None = None
        self._used = 0.0
        self._signal = 0
        self._killed = False
        self._terminal = _terminal_settings()

    def run(self) -> int:
        """Wait for the end, and return the exit status."""
        while True:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            self._listen()
            if pid:
                return self._ended(os.waitstatus_to_exitcode(status))
            self._take_signals()
            self._look_at_vmm()
            if self._is_late():
                self._killed = True
                os.kill(self._child, signal.SIGKILL)
                self._deadline = None

    def _listen(self) -> None:
        while select.select([self._line], [], [], 0)[0]:
            data, fds, _, _ = socket.recv_fds(self._line, _MOST, 2)
            if not data:
                return
            message = json.loads(data)
            self._reported |= message
            if fds:
                with os.fdopen(fds[0]) as file:
                    file.seek(0)
                    self._reported |= json.load(file)
            if "begins" in message:
                self._begin(*fds[1:])
            if "ended" in message or "background" in message:
                self._deadline = None

    def _begin(self, block: int | None = None) -> None:
        self._begun = time.monotonic()
        self._block = None if block is None else Block.opened(block)
        if self._reported["timeout"] is not None:
            self._deadline = self._begun + self._reported["timeout"] + PATIENCE

    def _take_signals(self) -> None:
        info = signal.sigtimedwait({*_ENDING, signal.SIGCHLD}, _PAUSE)
        if info is None or info.si_signo == signal.SIGCHLD:
            return
        by_the_terminal = info.si_code == _BY_THE_KERNEL
        if info.si_signo == signal.SIGHUP and self._reloads and not by_the_terminal:
            os.kill(self._child, signal.SIGHUP)
            return
        vmm = self._reported.get("vmm")
        if not by_the_terminal:  # the terminal has signalled all processes itself
            try:
                os.kill(vmm or self._child, info.si_signo)
            except ProcessLookupError:  # the VMM is in the background; its controller knows it
                os.kill(self._child, info.si_signo)
        if vmm is None:  # a VMM need not end because of a signal
            self._expect_end(info.si_signo)

    def _expect_end(self, number: int = 0) -> None:
        self._signal = self._signal or number
        self._used = _cpu_time_of(self._child)
        soon = time.monotonic() + PATIENCE
        self._deadline = soon if self._deadline is None else min(self._deadline, soon)

    def _is_late(self) -> bool:
        """
        Return whether the child should have ended by now.

        On a busy host it may not have got a CPU for long enough, so it gets more time then.
        """
        now = time.monotonic()
        if self._deadline is None or now < self._deadline:
            return False
        used = _cpu_time_of(self._child) - self._used
        return used > _ENOUGH_WORK or now > self._deadline + _MORE_PATIENCE

    def _look_at_vmm(self) -> None:
        """If the VMM has ended, expect its controller to end soon."""
        if "background" in self._reported:
            return
        if "vmm" in self._reported and self._deadline is None and not self._killed:
            status = _status_of(self._reported["vmm"])
            if status is not None:
                self._reported["status"] = status
                self._expect_end()

    # The end

    def _ended(self, status: int) -> int:
        if "names" not in self._reported or "ended" in self._reported:
            return status if status >= 0 else 128 - status
        if self._terminal is not None:
            with suppress(termios.error, OSError):
                termios.tcsetattr(0, termios.TCSADRAIN, self._terminal)
        self._end_vmm()
        result = self._result(self._end_of(status))
        self._report(result)
        return result.exit_status

    def _end_vmm(self) -> None:
        """Wait for a VMM that outlives its controller, and whose guest runs on under on_error."""
        vmm = self._reported.get("vmm", 0)
        asked = False
        while vmm and _status_of(vmm) is None and Path(f"/proc/{vmm}").exists():
            info = signal.sigtimedwait(_ENDING, _PAUSE)
            if info is not None or (self._killed and not asked):
                asked = True
                with suppress(OSError):
                    os.kill(vmm, signal.SIGTERM)

    def _end_of(self, status: int) -> End:
        if self._killed:
            what = "a handler held Python's interpreter, so the process was killed"
            if self._reported.get("vmm"):
                return End(EndKind.STOP, FAILED, what)
            if self._signal:
                return End(EndKind.STOP, INTERRUPTED, f"interrupted; {what}")
            detail = f"{self._reported['timeout']:g} seconds are over; {what}"
            return End(EndKind.TIMEOUT, TIMEOUT, detail)
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        return End(EndKind.ERROR, FAILED, f"a handler ended the process {how}")

    def _result(self, end: End) -> RunResult:
        run = self._reported
        notes = []
        if self._block is None:
            summary = Summary()
            notes.append("the accesses were counted in Python, and the counts are lost")
        else:
            summary = native_summary(self._block, Names(run["names"]))
        if run["state"] is not None:
            notes.append(f"the state was not saved to {run['state']}")
        wall = time.monotonic() - self._begun
        return RunResult(
            run["backend"],
            run["image"],
            run["policy"],
            end,
            summary,
            wall,
            notes=tuple(notes),
            lost=self._block is None,
        )


def _terminal_settings() -> list[Any] | None:
    try:
        return termios.tcgetattr(0)
    except (termios.error, OSError):
        return None


def _cpu_time_of(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds; 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = fields[11:13]  # fields 14 and 15 of proc(5)
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _status_of(pid: int) -> int | None:
    """Return the wait status of a process that has ended and is a zombie; otherwise None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[_EXIT_CODE]) if fields[0] == "Z" else None
