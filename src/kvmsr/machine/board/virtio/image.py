# SPDX-License-Identifier: Apache-2.0
"""
Disk images
-----------

A file, or a block device, whose bytes are those of a disk. It is locked while it is open: many may
read it, or one may write it.
"""

import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvmsr.errors import ImageError

__all__ = ("SECTOR", "Disk", "DiskImage")

SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class Disk:
    """
    Which file is a disk of a machine.

    :ivar path: a raw image, or a block device.
    :ivar write: whether the guest may write to it.
    """

    path: str | os.PathLike[str]
    write: bool = False


class DiskImage:
    """
    An open image.

    :raises ImageError: if it cannot be opened, is not made of whole sectors, or is in use.
    :ivar sectors: its size in sectors of 512 bytes.
    """

    def __init__(self, disk: Disk) -> None:
        self.path = Path(disk.path)
        self.writable = disk.write
        flags = (os.O_RDWR if disk.write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(self.path, flags)
        except OSError as error:
            what = "written" if disk.write and error.errno != 2 else "opened"
            raise ImageError(f"disk {self.path} cannot be {what}: {error.strerror}") from None
        try:
            self.sectors = self._measure()
            self._lock()
        except BaseException:
            os.close(self._fd)
            raise

    def _measure(self) -> int:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise ImageError(f"disk {self.path} is neither a file nor a block device")
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if not size or size % SECTOR:
            raise ImageError(
                f"disk {self.path} has {size:,} bytes, not a whole number of {SECTOR}-byte sectors:"
                f" `truncate --size=%{SECTOR}` fills the last one up"
                if size
                else f"disk {self.path} is empty: `truncate --size=1G` gives it a size"
            )
        return size // SECTOR

    def _lock(self) -> None:
        try:
            fcntl.flock(
                self._fd, (fcntl.LOCK_EX if self.writable else fcntl.LOCK_SH) | fcntl.LOCK_NB
            )
        except BlockingIOError:
            why = "somebody uses it" if self.writable else "somebody writes to it"
            raise ImageError(
                f"disk {self.path} is locked: {why}; end the other run, or make a copy"
            ) from None
        except OSError as error:
            raise ImageError(f"disk {self.path} cannot be locked: {error.strerror}") from None

    def read(self, offset: int, parts: Sequence[memoryview]) -> None:
        """
        Fill *parts* with the bytes from *offset* on.

        :raises OSError: if that fails.
        """
        left = list(parts)
        while left:
            offset = _advance(left, os.preadv(self._fd, left, offset), offset)

    def write(self, offset: int, parts: Sequence[memoryview]) -> None:
        """
        Write *parts*, from *offset* on.

        :raises OSError: if that fails.
        """
        left = list(parts)
        while left:
            offset = _advance(left, os.pwritev(self._fd, left, offset), offset)

    def flush(self) -> None:
        """
        Return when all that was written is on the disk.

        :raises OSError: if that fails.
        """
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the image. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _advance(left: list[memoryview], count: int, offset: int) -> int:
    """Take *count* bytes off *left*, and return the offset behind them."""
    if not count:
        raise OSError(0, "the file has become shorter")
    offset += count
    while left and count >= len(left[0]):
        count -= len(left.pop(0))
    if count:
        left[0] = left[0][count:]
    return offset
