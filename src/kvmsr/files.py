# SPDX-License-Identifier: Apache-2.0
"""
Reading files
-------------

Files that users name, which may be anything: a FIFO that nobody writes to, a device without end, a
watchdog that begins to count when it is opened.
"""

import errno
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ("read_regular",)

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def read_regular(path: Path, limit: int) -> bytes:
    """
    Return the contents of a regular file.

    :param limit: the most bytes that it may have.
    :raises OSError: if it cannot be read, is not a regular file (nothing else is even opened), or
        is larger (EFBIG); ``strerror`` says which.
    """
    _check(path.stat())
    # It may have been replaced since: then O_NONBLOCK keeps us from waiting for a FIFO's writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        _check(status)
        data = file.read(limit + 1) if status.st_size <= limit else b""
        if status.st_size > limit or len(data) > limit:
            size = max(status.st_size, len(data))
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and the limit is {limit:,}")
    return data


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")
