# SPDX-License-Identifier: Apache-2.0
"""
The guest's console
-------------------

What the guest sends on its serial line, and what its run logs, as text for the screen.
"""

import codecs
import os
import re
import threading
from typing import Final

from kvmsr.text import one_line

__all__ = ("Cleaner", "Tail", "Wrapper")

_ROOM: Final = 1 << 18
_PART: Final = 1 << 16
_LONGEST_ESCAPE: Final = 64
_ESCAPES: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles
    r"|[ -/]*[0-Z\\^-~])"  # two characters and a few more
)


class Cleaner:
    """Turns what a guest sends into lines of text: colours and cursor movements are left out."""

    def __init__(self) -> None:
        self._begun = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def clean(self, data: bytes) -> str:
        """Return the text of some more bytes. An escape sequence may go on in the next ones."""
        text = self._begun + self._decoder.decode(data)
        self._begun = ""
        at = text.rfind("\x1b")
        if at >= 0 and not _ESCAPES.match(text, at) and len(text) - at < _LONGEST_ESCAPE:
            text, self._begun = text[:at], text[at:]
        text = _ESCAPES.sub("", text).replace("\r", "").replace("\t", "    ")
        return "\n".join(one_line(line) for line in text.split("\n"))


class Wrapper:
    """Cuts lines that are too long for the screen, also those that come in parts."""

    def __init__(self) -> None:
        self._column = 0

    def wrap(self, text: str, width: int) -> str:
        """Return some more text in lines of *width* characters at most, 1 or more."""
        parts = []
        for number, line in enumerate(text.split("\n")):
            if number:
                parts.append("\n")
                self._column = 0
            while self._column + len(line) > width:
                room = max(width - self._column, 0)
                parts.append(f"{line[:room]}\n")
                line = line[room:]
                self._column = 0
            parts.append(line)
            self._column += len(line)
        return "".join(parts)


class Tail:
    """
    Reads a pipe as fast as it can, so that whoever writes does not wait, and keeps the end.

    :param fd: the pipe, which is closed at its end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._kept = bytearray()
        self._lost = 0
        self._keeping = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)
        self._thread.start()

    def take(self) -> tuple[bytes, int]:
        """Return what has come since the last call, and how many bytes before that are lost."""
        with self._keeping:
            taken, lost = bytes(self._kept), self._lost
            self._kept.clear()
            self._lost = 0
            return taken, lost

    def _read(self) -> None:
        try:
            while data := os.read(self._fd, _PART):
                with self._keeping:
                    self._kept += data
                    over = len(self._kept) - _ROOM
                    if over > 0:
                        del self._kept[:over]
                        self._lost += over
        except OSError:
            pass
        os.close(self._fd)

    def join(self) -> None:
        """Wait until everything is read."""
        self._thread.join()
