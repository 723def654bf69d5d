# SPDX-License-Identifier: Apache-2.0
"""
The guest's console
-------------------

Where a guest's serial line goes to and comes from.
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

__all__ = ("Line", "Teller", "access_log", "guest_input", "guest_output")

_BACKLOG: Final = 1024
_PAUSE_MS: Final = 20
_MAX_WAITING: Final = 100


class Line(Protocol):
    """A serial line that can be typed into."""

    @property
    def backlog(self) -> int:
        """Return how many characters have not been read yet."""

    def receive(self, data: bytes) -> None:
        """Take what is typed; from any thread."""


@contextmanager
def guest_output(serial: str, *, to_stderr: bool) -> Iterator[Callable[[bytes], None]]:
    """
    Give a function that puts out what the guest sends.

    :param serial: a file, or ``-`` for the terminal.
    :param to_stderr: the terminal is standard error, because standard output is for something else.
    :raises UsageError: if the file cannot be written.
    """
    if serial == "-":
        fd = sys.stderr.fileno() if to_stderr else sys.stdout.fileno()
        yield lambda data: _write(fd, data)
        return
    try:
        file = Path(serial).open("wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"--serial {serial}: cannot write it: {error.strerror}") from None
    with file:
        fd = file.fileno()
        yield lambda data: _write(fd, data)


class Teller:
    """
    Puts lines about accesses on standard error, where the guest's console may be as well: so each
    waits until the guest has ended its line, or has gone on for too long without.

    :param output: puts out what the guest sends.
    :param shared: whether that goes to the terminal, too.
    """

    def __init__(self, output: Callable[[bytes], None], *, shared: bool) -> None:
        self._output = output
        self._shared = shared
        self._in_line = False
        self._waiting: list[str] = []
        self._writing = threading.Lock()  # vCPUs tell, and one of them is the guest's console

    def output(self, data: bytes) -> None:
        """Put out what the guest sends."""
        if not self._shared:
            self._output(data)
            return
        with self._writing:
            self._output(data)
            self._in_line = not data.endswith(b"\n")
            if self._waiting and not self._in_line:
                self._tell()

    def tell(self, access: object, outcome: object, line: str) -> None:
        """Tell of an access."""
        with self._writing:
            self._waiting.append(line)
            if not self._in_line or len(self._waiting) > _MAX_WAITING:
                self._tell()

    def end(self) -> None:
        """Tell what is left."""
        with self._writing:
            self._tell()

    def _tell(self) -> None:
        if self._waiting:
            lines = "".join(f"kvmsr: {line}\n" for line in self._waiting)
            self._waiting.clear()
            with suppress(OSError):  # nobody listens any more
                click.echo(f"\n{lines}" if self._in_line else lines, err=True, nl=False)
            self._in_line = False


@contextmanager
def access_log(
    file: str, output: Callable[[bytes], None], *, shared: bool
) -> Iterator[tuple[Callable[[bytes], None], Callable[[object, object, str], None]]]:
    """
    Give a function that puts out what the guest sends, and one that tells of accesses.

    :param file: where accesses are told: a file, or ``-`` for standard error.
    :param output: puts out what the guest sends.
    :param shared: whether that goes to the terminal.
    :raises UsageError: if the file cannot be written.
    """
    if file == "-":
        teller = Teller(output, shared=shared)
        try:
            yield teller.output, teller.tell
        finally:
            teller.end()
        return
    try:
        opened = Path(file).open("wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"--log {file}: cannot write it: {error.strerror}") from None
    with opened:
        fd = opened.fileno()

        def tell(access: object, outcome: object, line: str) -> None:
            try:
                _write(fd, f"{line}\n".encode())
            except OSError as error:
                raise UsageError(f"--log {file}: {error.strerror}") from None

        yield output, tell


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def guest_input(line: Line) -> Iterator[None]:
    """
    Let the guest receive what is typed, or what standard input holds, in a thread.

    The terminal gives each key at once and shows none: the guest does. Ctrl-C stays the user's.
    What was set before is set again in the end.
    """
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd) if os.isatty(fd) else None
    except (AttributeError, OSError, ValueError, termios.error):
        yield  # there is no input
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
    stopping, either = select.poll(), select.poll()  # not select(): that ends at fd 1023
    stopping.register(stop, select.POLLIN)
    either.register(stop, select.POLLIN)
    either.register(fd, select.POLLIN)
    while True:
        # Where the guest does not read, or not as fast, neither do we.
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
