# SPDX-License-Identifier: Apache-2.0
"""
Processes of a run
------------------

``kvmsr exec`` starts one process, but the VMM may be another one: a wrapper script may start it, it
may go to the background (``-daemonize``), or a driver may start several. All of them inherit the
*life line*, one end of a pair of sockets, and an environment that names the run. The run lasts
until no process has that end open any more, and none has that environment: some programs close what
they inherit before they start others.

Only the VMM knows which processes run vCPUs, and what it says may be wrong. So kvmsr sends such a
process a signal only if its environment names this run: then the run started it.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from kvmsr.errors import UsageError

__all__ = ("BLOCK", "Processes", "is_unconfined")

BLOCK: Final = "KVMSR_BLOCK"
"""The environment variable that names a run's shared memory: controller and descriptors."""

_STATE, _BEGAN = 0, 19  # in /proc/…/stat, after the command's name: fields 3 and 22 of proc(5)
_PATIENCE: Final = 1.0
_MOST_THREADS: Final = 1000


class Processes:
    """
    The process that was started, and those that descend from it.

    :param command: the program and its arguments.
    :param program: the program's path.
    :param environment: the process's environment, including BLOCK.
    :param inherited: descriptors of this process to inherit, in addition to those that this process
        has inherited itself.
    :param stdout: descriptor of its standard output; None for this process's own.
    :ivar child: the process that was started.
    :raises UsageError: if it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        program: Path,
        environment: Mapping[str, str],
        inherited: Iterable[int] = (),
        stdout: int | None = None,
    ) -> None:
        self._line, life = socket.socketpair()
        self._line.setblocking(False)
        self._nameless: dict[int, float] = {}
        self._mark = f"{BLOCK}={environment[BLOCK]}".encode()
        fds = [life.fileno(), *inherited]
        try:
            for fd in fds:
                os.set_inheritable(fd, True)
            self.child = subprocess.Popen(
                list(command),
                executable=program,
                env=dict(environment),
                close_fds=False,  # management tools hand descriptors to their VMMs
                stdout=stdout,
            )
        except OSError as error:
            self._line.close()
            raise UsageError(f"{command[0]}: cannot start it: {error.strerror}") from None
        finally:
            for fd in fds:
                os.set_inheritable(fd, False)
            life.close()
        self._began = _began(self.child.pid)

    def over(self) -> bool:
        """Return whether all processes of the run have ended."""
        if self.child.poll() is None or not self._line_is_cut():
            return False
        pids = [int(path.name) for path in Path("/proc").glob("[1-9]*")]
        return not any(self._is_ours(pid) or self._may_be_ours(pid) for pid in pids)

    def wait(self, seconds: float) -> None:
        """Wait for *seconds*, or until the child ends."""
        if self.child.returncode is not None:
            time.sleep(seconds)
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)

    def send(self, number: signal.Signals, runners: Iterable[int]) -> None:
        """Send a signal to the child and to those of *runners* that belong to this run."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        for pid in set(runners) - {0, self.child.pid, os.getpid()}:
            if self._is_ours(pid):
                with suppress(OSError):  # it has just ended
                    os.kill(pid, number)

    def close(self) -> None:
        """Close the life line."""
        self._line.close()

    def _line_is_cut(self) -> bool:
        try:
            while self._line.recv(1 << 12):
                pass  # no message is expected
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _is_ours(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or belongs to another user
            return False

    def _may_be_ours(self, pid: int) -> bool:
        """
        Return whether a process has no environment, but may get one.

        While a process executes another program, there is a moment in which it has none, and on a
        busy host that moment may be long. So one that began after the child is waited for, for a
        second: a process may also be without an environment for good.
        """
        try:
            if Path(f"/proc/{pid}/environ").read_bytes():
                return False
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        if fields[_STATE] in "ZX" or int(fields[_BEGAN]) < self._began:
            return False
        now = time.monotonic()
        return now - self._nameless.setdefault(pid, now) < _PATIENCE


def _began(pid: int) -> int:
    """Return when a process began, in clock ticks since the host was booted."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_BEGAN])


def is_unconfined(pid: int) -> bool:
    """
    Return whether no thread of a process has more seccomp filters than this process.

    False if that cannot be seen, or if there are more than a thousand threads.
    """
    try:
        own = _confinement(Path("/proc/self/status"))
        threads = list(islice(Path(f"/proc/{pid}/task").iterdir(), _MOST_THREADS + 1))
        found = [_confinement(one / "status") for one in threads]
    except (OSError, ValueError):
        return False
    return 0 < len(threads) <= _MOST_THREADS and all(one in (own, None) for one in found)


def _confinement(status: Path) -> list[str] | None:
    """Return the lines of a thread's status about seccomp; None if the thread has ended."""
    try:
        lines = status.read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return [line for line in lines if line.startswith("Seccomp")]
