# SPDX-License-Identifier: Apache-2.0
"""
Reading files
-------------

Reads files whose names come from users. Such a name can refer to anything: a FIFO without a writer,
an endless device, or a watchdog that starts when it is opened.
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

    :param limit: the maximum size in bytes.
    :raises OSError: if it cannot be read, is not a regular file, or is larger than *limit* (EFBIG);
        ``strerror`` has the reason. Anything but a regular file is not even opened.
    """
    _check(path.stat())
    # The file may have been replaced since. O_NONBLOCK avoids waiting for the writer of a FIFO.
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
