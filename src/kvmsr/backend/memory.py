# SPDX-License-Identifier: Apache-2.0
"""
Memory
------

Anonymous memory at a fixed address of this process, to be given to a guest.
"""

import ctypes
import mmap
from typing import Self

from kvmsr.errors import GuestMemoryError, UsageError

__all__ = ("Memory",)


class Memory:
    """
    Zeroed memory of *size* bytes, a whole number of 4 KiB pages, taken from the host on first use.

    It goes back to the host once it is closed and no guest has it any more: a slot of a
    :class:`~kvmsr.kvm.Vm` holds it too.

    :ivar view: its bytes, writable.
    :raises GuestMemoryError: if the host does not have it.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % mmap.PAGESIZE:
            raise GuestMemoryError(
                f"guest memory of {size:#x} bytes cannot be had: it must be a whole number of"
                f" {mmap.PAGESIZE}-byte pages"
            )
        try:
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise GuestMemoryError(
                f"the host does not give {size >> 20} MiB of guest memory ({error}); ask for less"
            ) from None
        # Each view keeps the mapping; it is unmapped with the last of them.
        self.view = memoryview(mapping)
        self._size = size
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._closed = False

    @property
    def address(self) -> int:
        """
        Where it lies in this process.

        :raises UsageError: if it is closed.
        """
        if self._closed:
            raise UsageError("this memory is closed")
        return self._address

    def __len__(self) -> int:
        return self._size

    def close(self) -> None:
        """Let go of the memory; again is harmless."""
        self._closed = True
        self.view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
