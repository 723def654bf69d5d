# SPDX-License-Identifier: Apache-2.0
"""
I/O APIC
--------

24 pins, as arch/x86/kvm/ioapic.c has them (Intel 82093AA data sheet). An edge that comes while its
pin is masked is lost; a level waits.
"""

from collections.abc import Callable
from typing import Any, Final

from kvmsr.backend.soft.irqchip.message import Message

__all__ = ("PINS", "Ioapic")

PINS: Final = 24

_BASE: Final = 0xFEC0_0000
_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _TABLE = 0x00, 0x01, 0x02, 0x10
_VERSION_ID: Final = (PINS - 1) << 16 | 0x11
_MASKED, _LEVEL, _REMOTE_IRR, _STATUS = 1 << 16, 1 << 15, 1 << 14, 1 << 12
_MODE, _NMI = 7 << 8, 4 << 8
_READ_ONLY: Final = _REMOTE_IRR | _STATUS
_LOW: Final = 0xFFFF_FFFF


class Ioapic:
    """
    The I/O APIC.

    :param deliver: sends a message; returns how many took it.
    :param acked: called when a pin's interrupt has ended.
    :param unmasked: called when a pin is unmasked.
    """

    def __init__(
        self,
        deliver: Callable[[Message], int],
        acked: Callable[[int], None],
        unmasked: Callable[[int], None],
    ) -> None:
        self._deliver, self._acked, self._unmasked = deliver, acked, unmasked
        self._select = self._id = self._irr = 0
        self._delivered = 0  # edges in the IRR that went out: not to be repeated by a restore
        self._entries = [_MASKED] * PINS
        self._vectors = 0  # one bit for each that an entry has

    # Lines

    def set_line(self, pin: int, level: bool) -> int:
        """Set a pin's level; return 1 and more: delivered, 0: coalesced, less: masked."""
        bit = 1 << pin
        if not level:
            self._irr &= ~bit
            return 1
        before, self._irr = self._irr, self._irr | bit
        if not self._entries[pin] & _LEVEL:
            self._delivered &= ~bit
            if before & bit:
                return 0
        return self._service(pin)

    def _service(self, pin: int) -> int:
        entry = self._entries[pin]
        if entry & _MASKED or (entry & _LEVEL and entry & _REMOTE_IRR):
            return -1
        if not entry & _LEVEL:
            self._delivered |= 1 << pin
        taken = self._deliver(Message.of_pin(entry))
        if taken > 0 and entry & _LEVEL:
            self._entries[pin] |= _REMOTE_IRR
        return taken

    @property
    def may_send_nmi(self) -> bool:
        """Whether a pin that is not masked sends NMIs."""
        return any(entry & (_MASKED | _MODE) == _NMI for entry in self._entries)

    def end_of_interrupt(self, vector: int, *, level_triggered: bool) -> None:
        """
        A local APIC has ended the interrupt *vector*.

        *level_triggered* is its TMR's word, for another CPU may use the vector for something else.
        """
        if not self._vectors >> vector & 1:
            return
        for pin in range(PINS):
            if self._entries[pin] & 0xFF != vector:
                continue
            self._acked(pin)
            if level_triggered:
                self._entries[pin] &= ~_REMOTE_IRR
                if self._irr >> pin & 1:
                    self._service(pin)

    # Registers

    def mmio_read(self, offset: int, size: int) -> int:
        """Read the register at *offset*; what is none reads 0."""
        if offset == _SELECT:
            return self._select
        return self._read() & (1 << 8 * size) - 1 if offset == _WINDOW else 0

    def _read(self) -> int:
        if self._select == _VERSION:
            return _VERSION_ID
        if self._select in (_ID, _ARBITRATION):
            return self._id << 24
        pin, high = divmod(self._select - _TABLE, 2)
        if not 0 <= pin < PINS:
            return _LOW
        return self._entries[pin] >> 32 * high & _LOW

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write the register at *offset*; fewer than 32 bits are filled up with zeros."""
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _WINDOW:
            self._write(value & _LOW)

    def _write(self, value: int) -> None:
        if self._select == _ID:
            self._id = value >> 24 & 0xF
            return
        pin, high = divmod(self._select - _TABLE, 2)
        if not 0 <= pin < PINS:
            return
        old = self._entries[pin]
        if high:
            new = old & _LOW | value << 32
        else:
            new = old & ~_LOW | value & ~_READ_ONLY | old & _READ_ONLY
        if not new & _LEVEL:
            new &= ~_REMOTE_IRR  # guests go to edge and back as an EOI of their own
        self._entries[pin] = new
        self._note_vectors()
        if old & _MASKED and not new & _MASKED:
            self._unmasked(pin)
        if new & _LEVEL and self._irr >> pin & 1:
            self._service(pin)

    def _note_vectors(self) -> None:
        self._vectors = 0
        for entry in self._entries:
            self._vectors |= 1 << (entry & 0xFF)

    # State

    def get_state(self, state: Any) -> None:
        """Fill a struct kvm_ioapic_state."""
        state.base_address = _BASE
        state.ioregsel, state.id = self._select, self._id
        state.irr = self._irr & ~self._delivered
        state.redirtbl[:] = self._entries

    def set_state(self, state: Any) -> None:
        """Take a struct kvm_ioapic_state, and deliver what its IRR has."""
        self._select, self._id = state.ioregsel & 0xFF, state.id & 0xF
        self._irr = self._delivered = 0
        self._entries = list(state.redirtbl)
        self._note_vectors()
        for pin in range(PINS):
            if state.irr >> pin & 1:
                self.set_line(pin, True)
