# SPDX-License-Identifier: Apache-2.0
"""
Memory
------

Anonymous memory at a fixed address of this process, to be given to a guest.
"""

import ctypes
import mmap
from typing import Any

from kvmsr.errors import GuestMemoryError

__all__ = ("Memory",)


class Memory:
    """
    Zeroed memory of *size* bytes, a whole number of 4 KiB pages, taken from the host on first use.

    :ivar view: its bytes, writable.
    :ivar address: where it lies in this process; stays until :meth:`close`.
    :raises GuestMemoryError: if the host does not have it.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % mmap.PAGESIZE:
            raise GuestMemoryError(
                f"guest memory of {size:#x} bytes cannot be had: it must be a whole number of"
                f" {mmap.PAGESIZE}-byte pages"
            )
        try:
            self._mmap = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise GuestMemoryError(
                f"the host does not give {size >> 20} MiB of guest memory ({error}); ask for less"
            ) from None
        self.view = memoryview(self._mmap)
        self._pin: Any = ctypes.c_char.from_buffer(self._mmap)
        self.address = ctypes.addressof(self._pin)

    def __len__(self) -> int:
        return len(self._mmap)

    def close(self) -> None:
        """
        Give the memory back; no guest may use it any more.

        Where somebody still holds a part of :attr:`view`, it goes with that.
        """
        self._pin = None
        try:
            self.view.release()
            self._mmap.close()
        except BufferError:
            pass
