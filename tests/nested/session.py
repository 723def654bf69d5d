# SPDX-License-Identifier: Apache-2.0
"""
Sessions with the nested machine
--------------------------------

A program inside that answers questions: lines of text go in and come out over the serial line, so
that one boot serves as many questions as there are.
"""

import base64
import json
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.nested.machine import NestedError, prepare

__all__ = ("Session", "answer", "open_session")

READY = "ready"
PATIENCE = 40.0
"""Seconds that a boot or one answer may take; they take five and a tenth."""


class Session:
    """A program in the nested machine."""

    def __init__(self, process: "subprocess.Popen[bytes]", console: Path) -> None:
        self._process, self._console = process, console
        self._await_ready()

    def ask(self, question: str) -> Any:
        """
        Send a line and return what the program answers, which is JSON.

        :raises NestedError: if it does not.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return json.loads(zlib.decompress(base64.b64decode(self._line())))

    def _await_ready(self) -> None:
        while self._line() != READY:
            pass

    def _line(self) -> str:
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            self._fail()
        return line.decode("ascii", "replace").strip()

    def _fail(self) -> NoReturn:
        told = self._console.read_text("utf-8", "replace") if self._console.exists() else ""
        raise NestedError("\n".join(told.splitlines()[-30:]))


@contextmanager
def open_session(
    arguments: list[str], parameters: dict[str, str] | None = None
) -> Iterator[Session]:
    """
    Boot the nested machine and run Python with *arguments*, a program that calls :func:`answer`.

    :param parameters: of KVM's modules, by the module's name.
    :raises MissingError: if a part of the machine is not here.
    :raises NestedError: if the machine does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="nested-") as name:
        console = Path(name, "console")
        command = prepare(Path(name), arguments, parameters or {})
        command += ["-serial", f"file:{console}", "-serial", "stdio"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield Session(process, console)
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


def answer(question: Any) -> None:
    """Inside: answer each line of the input by ``question(line)``, until there are no more."""
    print(READY, flush=True)
    while line := input():
        text = json.dumps(question(line), separators=(",", ":"))
        print(base64.b64encode(zlib.compress(text.encode())).decode(), flush=True)
