# SPDX-License-Identifier: Apache-2.0
"""
The live view
-------------

``kvmsr run --live`` forks. The child does the work, as without a view. The parent has the terminal
and shows the view, a client of the run like ``kvmsr top``. The child's standard error, to which it
also writes what its guest sends, is a pipe to the parent; its standard output is not used before
the parent has left the view, so that the summary is printed where it always is.

The line between them ends the run if the parent is killed: the kernel then sends the child SIGTERM.
"""

import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TextIO

from kvmsr.errors import KvmsrError, UsageError
from kvmsr.text import one_line

if TYPE_CHECKING:
    from kvmsr.live.console import Tail

__all__ = ("View", "need_terminal", "shown_live")

_BEGUN: Final = b"begun"
_LONGEST: Final = 4096


def need_terminal(command: str) -> None:
    """
    Raise UsageError unless there is a terminal to show the view on.

    :param command: what the user has called, for the message.
    """
    if not all(stream is not None and _is_terminal(stream) for stream in (sys.stdin, sys.stderr)):
        raise UsageError(
            f"{command} needs a terminal, on standard input and standard error; without one, use"
            " kvmsr ctl PID summary"
        )


def _is_terminal(stream: TextIO) -> bool:
    try:
        return os.isatty(stream.fileno())
    except (OSError, ValueError):
        return False


class View:
    """
    The run's side of the line to its view.

    :param line: the line; None if there is no view, and nothing is sent or waited for.
    :param stderr: standard error as it was without the view.
    """

    def __init__(self, line: socket.socket | None = None, stderr: int = -1) -> None:
        self._line = line
        self._stderr = stderr

    @property
    def is_there(self) -> bool:
        """Whether there is a view."""
        return self._line is not None

    def begin(self) -> None:
        """Report that the run can be watched."""
        self._send(_BEGUN)

    def leave(self, how: str) -> None:
        """
        Report that the run has ended, and wait until the view was left.

        :param how: how it ended, in words.
        """
        line = self._line
        if line is None:
            return
        fcntl.fcntl(line, fcntl.F_SETFL, 0)  # from now on, nothing happens if the parent ends
        self._send(one_line(how).encode()[:_LONGEST])
        self._line = None
        with suppress(OSError):
            line.recv(1)
        line.close()
        sys.stderr.flush()
        os.dup2(self._stderr, sys.stderr.fileno())

    def _send(self, message: bytes) -> None:
        if self._line is not None:
            with suppress(OSError):  # the parent was killed
                self._line.send(message)


@contextmanager
def shown_live(wanted: bool) -> Iterator[View]:
    """
    Fork if a view is *wanted*, and go on in the child. Call this before any thread is started.

    The parent does not return; it exits with the status of the child.

    :raises UsageError: if there is no terminal.
    """
    if not wanted:
        yield View()
        return
    need_terminal("run --live")
    line, childs_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output, childs_output = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        childs_line.close()
        os.close(childs_output)
        sys.exit(_show(child, line, output))
    line.close()
    os.close(output)
    fcntl.fcntl(childs_line, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(childs_line, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(childs_line, fcntl.F_SETFL, os.O_ASYNC)
    view = View(childs_line, os.dup(2))
    os.dup2(childs_output, 2)
    os.close(childs_output)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        yield view
    except KvmsrError as error:
        view.leave(str(error))
        raise
    except KeyboardInterrupt:
        view.leave("interrupted")
        raise
    except Exception:
        view.leave("a bug in kvmsr")
        raise


def _show(child: int, line: socket.socket, output: int) -> int:
    """Show the view until it is left and the run has ended, and return the run's exit status."""
    from kvmsr.live.console import Tail

    tail = Tail(output)
    try:
        begun = line.recv(_LONGEST) == _BEGUN
        if begun:
            _view(child, line, tail)
        else:
            sys.stderr.write(tail.take()[0].decode(errors="replace"))
    finally:
        line.close()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _view(child: int, line: socket.socket, tail: "Tail") -> None:
    from kvmsr.cli._reload import terminal_is_there  # kvmsr top --help needs no session
    from kvmsr.live.app import LiveApp

    ended = ""

    def wait() -> None:
        nonlocal ended
        try:
            said = line.recv(_LONGEST).decode(errors="replace")
        except OSError:
            said = ""
        ended = said or "its process was killed"

    def hang_up(number: int, frame: object) -> None:
        if terminal_is_there():
            os.kill(child, number)  # which reloads the policy, or ends the run
        else:
            os._exit(128 + number)  # and so end the run; the view waits for its terminal for ever

    signal.signal(signal.SIGHUP, hang_up)
    waiting = threading.Thread(target=wait, name="end", daemon=True)
    waiting.start()
    try:
        LiveApp(str(child), console=tail, ended=lambda: ended).run()
    finally:
        if not ended:
            os.kill(child, signal.SIGTERM)
        waiting.join()
