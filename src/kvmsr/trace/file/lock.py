# SPDX-License-Identifier: Apache-2.0
"""
The writer's lock
-----------------

The writer of a trace holds a lock on it, which the kernel takes back when the writer ends, however
that happens. So a reader that waits for more knows whether more may come, and two runs cannot write
into one file. (Open file description locks: fcntl(2). They can be looked at without being taken.)
"""

import errno
import fcntl
import os
import struct
from typing import Final

__all__ = ("is_written", "lock")

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock on x86-64: type, whence, start, length, pid
_WHOLE: Final = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def lock(fd: int) -> bool:
    """
    Take the lock, and return False if another writer has it.

    Where there are no such locks, as on some network file systems, this does nothing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def is_written(fd: int) -> bool:
    """Return whether a writer has the lock, or may have one."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE)
    except OSError:
        return True
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
