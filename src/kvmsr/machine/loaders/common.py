# SPDX-License-Identifier: Apache-2.0
"""
What loaders share
------------------

Reading files and placing them in guest memory, with clear errors for what does not fit.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvmsr.errors import ImageError, UsageError
from kvmsr.files import read_regular
from kvmsr.kvm import Vm
from kvmsr.machine.cpustate import Start
from kvmsr.machine.layout import FOUR_GIB, INFO, INFO_SIZE, Layout

__all__ = ("Guest", "Loaded", "read_file")


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    The result of a loader.

    :ivar kind: the kind of image, for people.
    :ivar start: how the first vCPU starts.
    :ivar notes: lines for the user.
    """

    kind: str
    start: Start
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guest:
    """
    Where images are loaded.

    :ivar vm: the VM, with its RAM.
    :ivar layout: where RAM is.
    :ivar rsdp: the address of the ACPI tables, or 0 if there are none.
    """

    vm: Vm
    layout: Layout
    rsdp: int = 0

    def put(self, address: int, data: bytes | memoryview, what: str) -> None:
        """
        Copy *data* to guest-physical *address*.

        :param what: what *data* is, for the message.
        :raises ImageError: if there is no RAM at that address.
        """
        self.room(address, len(data), what)[:] = data

    def info_room(self, taken: Iterable[tuple[int, int]]) -> int:
        """
        Return where loaders may put up to INFO_SIZE bytes of information for the guest.

        :param taken: start and end of each range that the image occupies.
        """
        spans = list(taken)
        if all(end <= INFO or start >= INFO + INFO_SIZE for start, end in spans):
            return INFO
        return (max(end for _, end in spans) + 0xFFF) & -0x1000

    def room(self, address: int, size: int, what: str) -> memoryview:
        """Return a view of *size* bytes at *address*; see :meth:`put`."""
        try:
            return self.vm.memory_at(address, size)
        except UsageError:
            low, high = self.layout.low_size, self.layout.high_size
            ram = f"RAM is 0-{low - 1:#x}" + (
                f" and {FOUR_GIB:#x}-{FOUR_GIB + high - 1:#x}" if high else ""
            )
            raise ImageError(
                f"{what} does not fit: it needs {size:#x} bytes at {address:#x}, and {ram}; give"
                " the machine more --memory, or check the image"
            ) from None


def read_file(path: Path, what: str, limit: int) -> bytes:
    """
    Return the bytes of *path*.

    :param what: what the file is, for messages.
    :param limit: the largest size that makes sense, in bytes.
    :raises ImageError: if it is not a regular file, cannot be read, is empty, or is larger than
        *limit*.
    """
    try:
        data = read_regular(path, limit)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ImageError(
                f"{what} {path} does not fit in the machine's {limit:,} bytes of memory: give it"
                " more --memory"
            ) from None
        raise ImageError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL
        raise ImageError(f"{what} {path} is not the name of a file: {error}") from None
    if not data:
        raise ImageError(f"{what} {path} is empty")
    return data
