# SPDX-License-Identifier: Apache-2.0
"""
The reference TSC page
----------------------

A page of the guest's with a factor and an offset, by which it makes partition time, in units of 100
nanoseconds, of its TSC (TLFS 12.7; kvm_hv_setup_tsc_page of arch/x86/kvm/hyperv.c).
"""

import enum
import struct
from typing import Final, Protocol

from kvmsr.backend.soft.clock import scale

__all__ = ("GuestMemory", "PageClock", "ReferenceTsc")

_ENABLE: Final = 1
_PAGE: Final = struct.Struct("<IIQQ")
"""Sequence, reserved, factor (of 2**-64), offset."""
_LOW, _U64 = 0xFFFF_FFFF, (1 << 64) - 1


class GuestMemory(Protocol):
    """A VM's memory."""

    def read_guest(self, gpa: int, size: int) -> bytes | None:
        """Read guest-physical memory within a page; None where there is none."""

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write to guest-physical memory within a page; return whether it is there."""


class PageClock(Protocol):
    """The first vCPU's time."""

    @property
    def tsc_khz(self) -> int:
        """How fast the guest's TSC counts."""

    def kvmclock(self) -> tuple[int, int]:
        """Return the VM's kvmclock, in nanoseconds, and the guest's TSC at that moment."""


class Status(enum.Enum):
    """Whether the page has what it should."""

    UNSET = enum.auto()
    GUEST_CHANGED = enum.auto()
    HOST_CHANGED = enum.auto()
    SET = enum.auto()
    BROKEN = enum.auto()


class ReferenceTsc:
    """
    HV_X64_MSR_REFERENCE_TSC and its page.

    :ivar value: of the MSR.
    """

    def __init__(self) -> None:
        self.value = 0
        self._status = Status.UNSET
        self._factor = self._offset = 0

    def set(self, value: int, host: bool) -> None:
        """Write the MSR; the page is written by :meth:`update`."""
        self.value = value
        if value & _ENABLE:
            self._status = Status.HOST_CHANGED if host else Status.GUEST_CHANGED
        else:
            self._status = Status.UNSET

    def clock_changed(self, *, emulates: bool) -> None:
        """kvmclock was set."""
        if self._status == Status.SET and not self._must_stay(emulates):
            self._status = Status.HOST_CHANGED

    def _must_stay(self, emulates: bool) -> bool:
        # After a migration the guest expects the page as it was, until it says otherwise.
        return emulates and self._status != Status.GUEST_CHANGED

    @property
    def is_due(self) -> bool:
        """Whether the page has yet to be written."""
        return self._status in (Status.GUEST_CHANGED, Status.HOST_CHANGED)

    def update(self, memory: GuestMemory, clock: PageClock, *, emulates: bool) -> None:
        """
        Write the page, if that is due.

        :param emulates: the guest has asked for an emulated TSC (HV_X64_MSR_TSC_EMULATION_CONTROL).
        """
        if self.is_due:
            done = self._write(memory, clock, self.value & ~0xFFF, self._must_stay(emulates))
            self._status = Status.SET if done else Status.BROKEN

    def _write(self, memory: GuestMemory, clock: PageClock, at: int, stays: bool) -> bool:
        found = memory.read_guest(at, _PAGE.size)
        if found is None:
            return False
        sequence, _, self._factor, offset = _PAGE.unpack(found)
        if sequence and stays:
            self._offset = offset
            return True
        now, tsc = clock.kvmclock()
        multiplier, shift = scale(clock.tsc_khz)
        if multiplier >= 100 << (32 - shift):
            return False
        self._factor = (1 << (32 + shift)) * multiplier // 100
        self._offset = now // 100 - (tsc * self._factor >> 64) & _U64
        sequence = sequence + 1 & _LOW
        sequence = 1 if sequence in (0, _LOW) else sequence
        return memory.write_guest(at, _PAGE.pack(sequence, 0, self._factor, self._offset))

    def time(self, clock: PageClock) -> int:
        """Return partition time (get_time_ref_counter): by the page, where there is one."""
        now, tsc = clock.kvmclock()
        if self._status != Status.SET:
            return now // 100
        return (tsc * self._factor >> 64) + self._offset & _U64
