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

__all__ = ("Following",)

_PERIOD: Final = 0.1  # seconds


class Following(io.RawIOBase):
    """
    A file whose end is waited at until there is more.

    It only ends if the file becomes shorter, which happens when a new run replaces it.

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
        while not (data := os.read(self._fd, size)):
            if os.fstat(self._fd).st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
                break
            time.sleep(_PERIOD)
        return data

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._fd)
        super().close()
