# SPDX-License-Identifier: Apache-2.0
"""
Following a file
----------------

Reads a file that is still being written.
"""

import io
import os
import stat
import time
from pathlib import Path
from typing import Final

from kvmsr.errors import TraceError
from kvmsr.trace.file.lock import is_written

__all__ = ("Following",)

_PERIOD: Final = 0.1  # seconds


class Following(io.RawIOBase):
    """
    A file whose end is waited at until there is more.

    It ends when nobody writes it any more: its writer has ended, or was killed. While the file is
    empty, there is no writer yet. It also ends if it becomes shorter: a new run replaces it then.

    :param path: the file. It must be a regular one: any other waits by itself.
    :raises TraceError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise TraceError(f"{path}: the trace cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise TraceError(f"{path}: only a regular file can be followed")

    def read(self, size: int = -1) -> bytes:
        """Return some bytes, *size* at most, once there are any."""
        while True:
            written = is_written(self._fd)  # before the last look at what it wrote
            data = os.read(self._fd, size)
            at = os.lseek(self._fd, 0, os.SEEK_CUR)
            if data or os.fstat(self._fd).st_size < at or (at and not written):
                return data
            time.sleep(_PERIOD)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._fd)
        super().close()
