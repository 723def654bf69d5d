# SPDX-License-Identifier: Apache-2.0
"""
The guest's console
-------------------

Connects a guest's serial line, and the log of its accesses, to the terminal or to files.
"""

import os
import select
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import click

from kvmsr.errors import UsageError

__all__ = ("Line", "TerminalLog", "access_log", "guest_input", "guest_output")

_BACKLOG: Final = 1024
_PAUSE_MS: Final = 20
_MAX_WAITING: Final = 100


class Line(Protocol):
    """A serial line that takes input."""

    @property
    def backlog(self) -> int:
        """Return the number of characters that the guest has not read yet."""

    def receive(self, data: bytes) -> None:
        """Queue input. May be called from any thread."""


@contextmanager
def guest_output(serial: str, *, to_stderr: bool) -> Iterator[Callable[[bytes], None]]:
    """
    Return a function that writes the guest's output.

    :param serial: a file, or ``-`` for the terminal.
    :param to_stderr: whether to use standard error as the terminal, because standard output is
        needed for something else.
    :raises UsageError: if the file cannot be written.
    """
    if serial == "-":
        fd = sys.stderr.fileno() if to_stderr else sys.stdout.fileno()
        yield lambda data: _write(fd, data)
        return
    try:
        file = Path(serial).open("wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"--serial {serial}: cannot be written: {error.strerror}") from None
    with file:
        fd = file.fileno()
        yield lambda data: _write(fd, data)


class TerminalLog:
    """
    Logs accesses to standard error, which may also show the guest's console. A line is therefore
    held back until the guest has ended its own line, but not for too long.

    :param output: writes the guest's output.
    :param shared: whether that goes to the terminal, too.
    """

    def __init__(self, output: Callable[[bytes], None], *, shared: bool) -> None:
        self._output = output
        self._shared = shared
        self._in_line = False
        self._waiting: list[str] = []
        self._writing = threading.Lock()  # vCPUs log, and write the guest's output

    def output(self, data: bytes) -> None:
        """Write the guest's output."""
        if not self._shared:
            self._output(data)
            return
        with self._writing:
            self._output(data)
            self._in_line = not data.endswith(b"\n")
            if self._waiting and not self._in_line:
                self._write()

    def log(self, access: object, outcome: object, line: str) -> None:
        """Log an access."""
        with self._writing:
            self._waiting.append(line)
            if not self._in_line or len(self._waiting) > _MAX_WAITING:
                self._write()

    def end(self) -> None:
        """Write what has been held back."""
        with self._writing:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            lines = "".join(f"kvmsr: {line}\n" for line in self._waiting)
            self._waiting.clear()
            with suppress(OSError):  # nobody reads it any more
                click.echo(f"\n{lines}" if self._in_line else lines, err=True, nl=False)
            self._in_line = False


@contextmanager
def access_log(
    file: str, output: Callable[[bytes], None], *, shared: bool
) -> Iterator[tuple[Callable[[bytes], None], Callable[[object, object, str], None]]]:
    """
    Return a function that writes the guest's output, and one that logs accesses.

    :param file: the log file, or ``-`` for standard error.
    :param output: writes the guest's output.
    :param shared: whether that goes to the terminal.
    :raises UsageError: if the file cannot be written.
    """
    if file == "-":
        terminal = TerminalLog(output, shared=shared)
        try:
            yield terminal.output, terminal.log
        finally:
            terminal.end()
        return
    try:
        opened = Path(file).open("wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"--log {file}: cannot be written: {error.strerror}") from None
    with opened:
        fd = opened.fileno()

        def log(access: object, outcome: object, line: str) -> None:
            try:
                _write(fd, f"{line}\n".encode())
            except OSError as error:
                raise UsageError(f"--log {file}: {error.strerror}") from None

        yield output, log


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def guest_input(line: Line) -> Iterator[None]:
    """
    Pass what is typed, or what standard input has, to the guest, in a thread.

    The terminal passes on each key at once and does not echo it: that is up to the guest. Ctrl-C
    remains the user's. The terminal's settings are restored at the end.
    """
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd) if os.isatty(fd) else None
    except (AttributeError, OSError, ValueError, termios.error):
        yield  # there is no standard input
        return
    stop_read, stop_write = os.pipe()
    thread = threading.Thread(
        target=_feed, args=(fd, stop_read, line), name="guest input", daemon=True
    )
    if before is not None:
        _set_terminal(fd, before)
    thread.start()
    try:
        yield
    finally:
        os.write(stop_write, b"x")
        thread.join()
        os.close(stop_read)
        os.close(stop_write)
        if before is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _set_terminal(fd: int, before: list[Any]) -> None:
    attributes = list(before)
    attributes[0] &= ~termios.ICRNL
    attributes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(fd, termios.TCSADRAIN, attributes)


def _feed(fd: int, stop: int, line: Line) -> None:
    stopping, either = (
        select.poll(),
        select.poll(),
    )  # not select(), which cannot handle descriptors above 1023
    stopping.register(stop, select.POLLIN)
    either.register(stop, select.POLLIN)
    either.register(fd, select.POLLIN)
    while True:
        # Do not read faster than the guest does.
        waiting = line.backlog > _BACKLOG
        ready = dict(stopping.poll(_PAUSE_MS) if waiting else either.poll())
        if stop in ready:
            return
        if fd not in ready:
            continue
        try:
            data = os.read(fd, _BACKLOG)
        except OSError:
            return
        if not data:
            return
        line.receive(data)
