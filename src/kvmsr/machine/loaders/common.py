# SPDX-License-Identifier: Apache-2.0
"""
What loaders share
------------------

Reading files, putting them into guest memory, and saying clearly why something does not fit.
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
    What a loader did.

    :ivar kind: what the image was, for people.
    :ivar start: how the first vCPU starts.
    :ivar notes: what the user should know, a line each.
    """

    kind: str
    start: Start
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guest:
    """
    Where images are loaded to.

    :ivar vm: the VM, its RAM in place.
    :ivar layout: how much of it lies where.
    :ivar rsdp: where the ACPI tables are; 0 where there are none.
    """

    vm: Vm
    layout: Layout
    rsdp: int = 0

    def put(self, address: int, data: bytes | memoryview, what: str) -> None:
        """
        Copy *data* to guest-physical *address*.

        :param what: what it is, for the message.
        :raises ImageError: if there is no RAM.
        """
        self.room(address, len(data), what)[:] = data

    def info_room(self, taken: Iterable[tuple[int, int]]) -> int:
        """
        Return where loaders may put up to INFO_SIZE bytes that they tell the guest.

        :param taken: start and end of what the image itself occupies.
        """
        spans = list(taken)
        if all(end <= INFO or start >= INFO + INFO_SIZE for start, end in spans):
            return INFO
        return (max(end for _, end in spans) + 0xFFF) & -0x1000

    def room(self, address: int, size: int, what: str) -> memoryview:
        """Return *size* bytes at *address*; see :meth:`put`."""
        try:
            return self.vm.memory_at(address, size)
        except UsageError:
            low, high = self.layout.low_size, self.layout.high_size
            ram = f"RAM is 0-{low - 1:#x}" + (
                f" and {FOUR_GIB:#x}-{FOUR_GIB + high - 1:#x}" if high else ""
            )
            raise ImageError(
                f"{what} does not fit: it wants {size:#x} bytes at {address:#x}, and {ram}; give"
                " the machine more --memory, if the image is sound"
            ) from None


def read_file(path: Path, what: str, limit: int) -> bytes:
    """
    Return the bytes of *path*.

    :param what: what it is, for messages.
    :param limit: the most bytes that make sense.
    :raises ImageError: if it is not a regular file, cannot be read, is empty, or is larger than
        *limit*.
    """
    try:
        data = read_regular(path, limit)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ImageError(
                f"{what} {path} does not fit the machine's {limit:,} bytes of memory: give it more"
                " --memory"
            ) from None
        raise ImageError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL
        raise ImageError(f"{what} {path} is not the name of a file: {error}") from None
    if not data:
        raise ImageError(f"{what} {path} is empty")
    return data
