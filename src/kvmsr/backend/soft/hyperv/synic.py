# SPDX-License-Identifier: Apache-2.0
"""
The synthetic interrupt controller
----------------------------------

A vCPU's sixteen interrupt sources (SINTs), and the page in which the guest finds messages (TLFS
11.8; struct kvm_vcpu_hv_synic).
"""

import enum
import struct
from typing import Final, Protocol

__all__ = ("Delivery", "Synic", "SynicVcpu")

SCONTROL, SVERSION, SIEFP, SIMP, EOM, SINT0, SINT15 = (
    0x4000_0080, 0x4000_0081, 0x4000_0082, 0x4000_0083, 0x4000_0084, 0x4000_0090, 0x4000_009F,
)  # fmt: skip
_ENABLED: Final = 1
_MASKED, _AUTO_EOI, _VECTOR = 1 << 16, 1 << 17, 0xFF
_FIRST_VECTOR: Final = 16
_PAGE, _MESSAGE = 0x1000, 0x100
_HEADER: Final = struct.Struct("<IBBHQ")
"""Type, size of the payload, flags, reserved, sender."""
_FLAGS: Final = 5
_PENDING: Final = 1


class SynicVcpu(Protocol):
    """The vCPU that it belongs to; under the VM's lock."""

    def read_guest(self, gpa: int, size: int) -> bytes | None:
        """Read guest-physical memory within a page; None where there is none."""

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write to guest-physical memory within a page; return whether it is there."""

    def interrupt(self, vector: int) -> bool:
        """Request an interrupt at its own local APIC; return whether that took it."""


class Delivery(enum.Enum):
    """What came of a message."""

    DONE = enum.auto()
    LATER = enum.auto()
    """The guest has yet to read another one."""
    FAILED = enum.auto()


class Synic:
    """
    A vCPU's SynIC.

    :ivar active: user space has enabled it (KVM_CAP_HYPERV_SYNIC and SYNIC2).
    :ivar keeps_pages: pages are not cleared when they are enabled (SYNIC2).
    :ivar written: the register whose write by the guest user space has to hear of; None: none.
    :ivar acknowledged: SINTs whose messages the guest has read, as a mask.
    """

    def __init__(self, vcpu: SynicVcpu) -> None:
        self._vcpu = vcpu
        self.active = self.keeps_pages = False
        self.control, self.version, self.event_page, self.message_page = 0, 1, 0, 0
        self.sints = [_MASKED] * 16
        self.written: int | None = None
        self.acknowledged = 0

    def activate(self, *, keeps_pages: bool) -> None:
        """Enable it."""
        self.active, self.keeps_pages = True, keeps_pages
        self.control = _ENABLED

    def read(self, index: int, host: bool) -> int | None:
        """Read a register by its MSR; None: it is illegal."""
        if not self.active and not host:
            return None
        if SINT0 <= index <= SINT15:
            return self.sints[index - SINT0]
        return {
            SCONTROL: self.control, SVERSION: self.version, SIEFP: self.event_page,
            SIMP: self.message_page, EOM: 0,
        }.get(index)  # fmt: skip

    def write(self, index: int, value: int, host: bool) -> bool:
        """Write a register; False: it is illegal."""
        if not self.active and (not host or value):
            return False
        if SINT0 <= index <= SINT15:
            if value & _VECTOR < _FIRST_VECTOR and not host and not value & _MASKED:
                return False
            self.sints[index - SINT0] = value
        elif index == EOM:
            self.acknowledged = 0xFFFF if self.active else 0
        elif index == SVERSION:
            self.version = value if host else self.version
            return host
        else:
            return self._write_page(index, value, host)
        return True

    def _write_page(self, index: int, value: int, host: bool) -> bool:
        if index == SCONTROL:
            self.control = value
        elif index in (SIEFP, SIMP):
            clears = value & _ENABLED and not host and not self.keeps_pages
            if clears and not self._vcpu.write_guest(value & ~0xFFF, bytes(_PAGE)):
                return False
            if index == SIEFP:
                self.event_page = value
            else:
                self.message_page = value
        else:
            return False
        if not host:
            self.written = index
        return True

    # Interrupts

    def _vectors(self, flag: int = 0) -> set[int]:
        return {s & _VECTOR for s in self.sints if not s & _MASKED and s & flag == flag}

    def ends_by_itself(self, vector: int) -> bool:
        """Whether an interrupt of *vector* is over as soon as it is taken."""
        return self.active and vector in self._vectors(_AUTO_EOI)

    def ended(self, vector: int) -> None:
        """Take note that the guest has ended an interrupt: it has read what came with it."""
        for number, sint in enumerate(self.sints):
            if not sint & _MASKED and sint & _VECTOR == vector:
                self.acknowledged |= 1 << number

    def deliver(self, sint: int, kind: int, payload: bytes, *, retries: bool) -> Delivery:
        """
        Put a message into its slot and interrupt (synic_deliver_msg).

        :param retries: what cannot be delivered now is to be delivered once the slot is free, and
            the guest is asked to say so.
        """
        if not self.message_page & _ENABLED:
            return Delivery.FAILED
        slot = (self.message_page & ~0xFFF) + sint * _MESSAGE
        header = self._vcpu.read_guest(slot, _HEADER.size)
        if header is None:
            return Delivery.FAILED
        if header[:4] != bytes(4):
            if not retries:
                return Delivery.DONE
            self._vcpu.write_guest(slot + _FLAGS, bytes((header[_FLAGS] | _PENDING,)))
            return Delivery.LATER
        self._vcpu.write_guest(slot, _HEADER.pack(kind, len(payload), 0, 0, 0) + payload)
        config = self.sints[sint]
        delivered = not config & _MASKED and self._vcpu.interrupt(config & _VECTOR)
        return Delivery.DONE if delivered else Delivery.FAILED
