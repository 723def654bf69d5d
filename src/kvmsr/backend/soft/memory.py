# SPDX-License-Identifier: Apache-2.0
"""
Memory slots
------------

What KVM_SET_USER_MEMORY_REGION says; what a CPU sees of it is in ``cpu_memory``.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.abi import MemFlag
from kvmsr.backend.soft.uaccess import read_user, write_user

__all__ = ("Slot", "Slots")

_PAGE: Final = 0x1000
_MAX_SLOTS: Final = 32764  # KVM_USER_MEM_SLOTS
_MAX_PAGES: Final = (1 << 31) - 1  # KVM_MEM_MAX_NR_PAGES
_END: Final = 1 << 40  # what CPUID offers of physical addresses


@dataclass(frozen=True, slots=True)
class Slot:
    """
    Guest-physical memory: *size* bytes at *address*, in this process at *host_address*.

    :ivar logged: it has a dirty log.
    """

    address: int
    size: int
    host_address: int
    writable: bool
    logged: bool = False

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


class Slots:
    """
    The slots of a VM.

    :ivar generation: counts the changes.
    """

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}
        self.generation = 0

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def set(self, region: Any) -> None:
        """
        Create, move or delete a slot, as __kvm_set_memory_region does.

        :raises OSError: EINVAL, EEXIST.
        """
        flags = region.flags
        address, size = region.guest_phys_addr, region.memory_size
        number = region.slot & 0xFFFF
        bad = (
            flags & ~int(MemFlag.READONLY | MemFlag.LOG_DIRTY_PAGES)
            or region.slot >> 16
            or number >= _MAX_SLOTS
            or size % _PAGE
            or address % _PAGE
            or region.userspace_addr % _PAGE
            or address + size > _END
            or size // _PAGE > _MAX_PAGES
        )
        if bad:
            raise _error(errno.EINVAL)
        old = self._slots.get(number)
        if not size:
            if old is None:
                raise _error(errno.EINVAL)
            del self._slots[number]
        else:
            new = Slot(
                address, size, region.userspace_addr,
                writable=not flags & MemFlag.READONLY, logged=bool(flags & MemFlag.LOG_DIRTY_PAGES),
            )  # fmt: skip
            self._check(number, old, new)
            if new == old:
                return
            self._slots[number] = new
        self.generation += 1

    def _check(self, number: int, old: Slot | None, new: Slot) -> None:
        if old is not None and (
            new.size != old.size
            or new.host_address != old.host_address
            or new.writable != old.writable
        ):
            raise _error(errno.EINVAL)
        for other, slot in self._slots.items():
            if other != number and slot.address < new.end and new.address < slot.end:
                raise _error(errno.EEXIST)

    def dirty_log(self, number: int) -> bytes:
        """
        Return the dirty log of a slot: every page counts as written.

        Nothing here sees the guest's stores. Who asks copies or draws more than would be needed.

        :raises OSError: ENOENT, if there is no such slot, or it has none.
        """
        slot = self._slots.get(number)
        if slot is None or not slot.logged:
            raise _error(errno.ENOENT)
        pages = slot.size // _PAGE
        return ((1 << pages) - 1).to_bytes((pages + 63) // 64 * 8, "little")

    def host_address(self, address: int, size: int) -> int | None:
        """Return where *size* bytes at guest-physical *address* lie, or None."""
        for slot in self._slots.values():
            if slot.address <= address and address + size <= slot.end:
                return slot.host_address + address - slot.address
        return None

    def read(self, address: int, size: int) -> bytes | None:
        """Read guest-physical memory within a page, or return None where there is none."""
        at = self.host_address(address, size)
        try:
            return None if at is None else read_user(at, size)
        except OSError:
            return None

    def write(self, address: int, data: bytes) -> bool:
        """Write to guest-physical memory within a page; return whether it is there."""
        at = self.host_address(address, len(data))
        if at is None:
            return False
        try:
            write_user(at, data)
        except OSError:
            return False
        return True


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
