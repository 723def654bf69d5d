# SPDX-License-Identifier: Apache-2.0
"""
Local APIC
----------

A local APIC in xAPIC and x2APIC mode, as arch/x86/kvm/lapic.c behaves (SDM volume 3, chapter 11).
Requested, in-service and trigger bits are one number each of 256 bits.
"""

from typing import Final, Protocol

from kvmsr.backend.soft.irqchip.events import LapicEvents
from kvmsr.backend.soft.irqchip.message import (
    EXTINT,
    FIXED,
    INIT,
    LOWEST,
    NMI,
    REMOTE_READ,
    SMI,
    STARTUP,
    Message,
)
from kvmsr.backend.soft.irqchip.timer import Clock, Timer

__all__ = ("Bus", "Lapic")

_ID, _VERSION, _TPR, _PPR, _EOI, _LDR, _DFR, _SPIV = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
_ISR, _TMR, _IRR, _ESR, _ICR, _ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
_LVTT, _LVT0, _LVTERR, _TMICT, _TMCCT, _TDCR, _SELF = (
    0x320, 0x350, 0x370, 0x380, 0x390, 0x3E0, 0x3F0,
)  # fmt: skip

_VERSION_ID: Final = 5 << 16 | 0x14
_LVT_MASKS: Final = {
    0x320: 0x7_10FF, 0x330: 0x1_17FF, 0x340: 0x1_17FF, 0x350: 0x1_F7FF, 0x360: 0x1_F7FF,
    0x370: 0x1_10FF,
}  # fmt: skip
_KEPT: Final = (_TPR, _LDR, _DFR, _SPIV, _ESR, _ICR, _ICR2, _TDCR, *_LVT_MASKS)
_X2APIC_READABLE: Final = frozenset(
    (_ID, _VERSION, _TPR, _PPR, _LDR, _SPIV, *range(_ISR, _ESR, 0x10), _ESR, _ICR, *_LVT_MASKS,
     _TMICT, _TMCCT, _TDCR)
)  # fmt: skip
_X2APIC_WRITABLE: Final = frozenset(
    (_TPR, _EOI, _SPIV, _ESR, _ICR, *_LVT_MASKS, _TMICT, _TDCR, _SELF)
)
_MASKED: Final = 1 << 16
_PERIODIC: Final = 1 << 17
_SOFTWARE_ENABLE: Final = 1 << 8
_BASE_ENABLE, _BASE_X2APIC, _BASE_BSP = 1 << 11, 1 << 10, 1 << 8
_BASE: Final = 0xFEE0_0000
_BUSY: Final = 1 << 12
_ICR_RESERVED: Final = 0xFFF3_2000
_PAGE: Final = 0x400
_LOW: Final = 0xFFFF_FFFF


class Bus(Protocol):
    """What connects the local APICs and the I/O APIC."""

    reenables_lint0: bool  # as a BIOS would; some guests rely on it (KVM_X86_QUIRK_LINT0_REENABLED)

    def send(self, message: Message, *, sender: "Lapic", shorthand: int) -> int:
        """Send a message to the local APICs that it is for; return how many took it."""

    def end_of_interrupt(self, vector: int, *, level_triggered: bool) -> None:
        """Pass on that a local APIC has ended an interrupt."""


class Lapic:
    """
    A local APIC.

    :ivar id: its number, the vCPU's.
    :ivar xapic_id: its ID in xAPIC mode, which the guest may change.
    :ivar events: the vCPU that it belongs to.
    """

    def __init__(
        self, apic_id: int, clock: Clock, events: LapicEvents, bus: Bus, *, is_bsp: bool
    ) -> None:
        self.id = apic_id
        self.events, self._bus, self._is_bsp = events, bus, is_bsp
        self._timer = Timer(clock)
        self._regs: dict[int, int] = {}
        self._irr = self._isr = self._tmr = 0
        self.reset(init=False)

    def reset(self, *, init: bool) -> None:
        """Do RESET, or INIT, which leaves base and ID alone."""
        if not init:
            self.xapic_id = self.id & 0xFF
            self._base = _BASE | _BASE_ENABLE | (_BASE_BSP if self._is_bsp else 0)
        self._regs = dict.fromkeys(_KEPT, 0)
        for offset in _LVT_MASKS:
            self._regs[offset] = _MASKED
        if self._is_bsp and self._bus.reenables_lint0:
            self._regs[_LVT0] = EXTINT << 8
        self._regs[_DFR], self._regs[_SPIV] = _LOW, 0xFF
        self._irr = self._isr = self._tmr = 0
        self._timer.reset()
        if self._base & _BASE_X2APIC:
            self._set_x2apic_ldr()

    # Modes

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self._base

    @apic_base.setter
    def apic_base(self, value: int) -> None:
        old, self._base = self._base, value
        if value & ~old & _BASE_ENABLE:
            self.xapic_id = self.id & 0xFF
        if value & ~old & _BASE_X2APIC:
            self._set_x2apic_ldr()
        self.events.wake()

    def _set_x2apic_ldr(self) -> None:
        self._regs[_LDR] = self.id >> 4 << 16 | 1 << (self.id & 0xF)

    @property
    def is_x2apic(self) -> bool:
        """Whether it is in x2APIC mode."""
        return self._base & (_BASE_ENABLE | _BASE_X2APIC) == _BASE_ENABLE | _BASE_X2APIC

    @property
    def is_enabled(self) -> bool:
        """Whether its base enables it."""
        return bool(self._base & _BASE_ENABLE)

    @property
    def is_software_enabled(self) -> bool:
        """Whether it is enabled, and by its spurious vector register too."""
        return self.is_enabled and bool(self._regs[_SPIV] & _SOFTWARE_ENABLE)

    @property
    def logical(self) -> tuple[int, int]:
        """LDR and DFR."""
        return self._regs[_LDR], self._regs[_DFR]

    def accepts_pic_interrupt(self) -> bool:
        """Return whether the 8259 pair's interrupts come through (kvm_apic_accept_pic_intr)."""
        if not self.is_enabled:
            return True
        lvt0 = self._regs[_LVT0]
        return not lvt0 & _MASKED and lvt0 >> 8 & 7 == EXTINT

    @property
    def takes_pic_nmis(self) -> bool:
        """Whether the 8259 pair's interrupts are wired to NMI."""
        return self._regs[_LVT0] & (_MASKED | 7 << 8) == NMI << 8

    # Interrupts

    @property
    def cr8(self) -> int:
        """CR8: the upper half of the task priority."""
        return self._regs[_TPR] >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._set_tpr(value << 4)

    def _set_tpr(self, value: int) -> None:
        lower = value < self._regs[_TPR]
        self._regs[_TPR] = value & 0xFF
        if lower and self._irr:
            self.events.wake()

    @property
    def _ppr(self) -> int:
        tpr, serving = self._regs[_TPR], max(self._isr.bit_length() - 1, 0) & 0xF0
        return tpr if tpr & 0xF0 >= serving else serving

    def pending_vector(self) -> int | None:
        """Return the vector that is due, or None."""
        if not self._irr or not self.is_enabled:
            return None
        vector = self._irr.bit_length() - 1
        return vector if vector & 0xF0 > self._ppr & 0xF0 else None

    def acknowledge(self) -> int | None:
        """Take the interrupt that is due into service."""
        vector = self.pending_vector()
        if vector is not None:
            self._irr &= ~(1 << vector)
            self._isr |= 1 << vector
        return vector

    def accept(self, message: Message) -> bool:
        """Take a message that is for it (__apic_accept_irq); return whether it did."""
        mode, vector = message.mode, message.vector
        if mode in (FIXED, LOWEST, INIT) and message.level_triggered and not message.level:
            return False  # a de-assertion means nothing since the P6
        if mode in (FIXED, LOWEST):
            return self._request(vector, level_triggered=message.level_triggered)
        events = {
            SMI: self.events.smi, REMOTE_READ: self.events.unhalt, NMI: self.events.nmi,
            INIT: self.events.init,
        }  # fmt: skip
        if mode == STARTUP:
            self.events.sipi(vector)
        elif mode in events:
            events[mode]()
        return mode == STARTUP or mode in events

    def _request(self, vector: int, *, level_triggered: bool) -> bool:
        if not self.is_software_enabled:
            return False
        bit = 1 << vector
        self._tmr = self._tmr | bit if level_triggered else self._tmr & ~bit
        self._irr |= bit
        self.events.wake()
        return True

    def end_interrupt(self) -> None:
        """End the highest interrupt that the guest handles (EOI)."""
        if not self._isr:
            return
        vector = self._isr.bit_length() - 1
        self._isr &= ~(1 << vector)
        self._bus.end_of_interrupt(vector, level_triggered=bool(self._tmr >> vector & 1))
        self.events.eoi(vector)
        if self._irr:
            self.events.wake()

    def _command(self, icr: int, dest: int) -> None:
        message = Message.of_icr(icr, dest, wide=self.is_x2apic)
        self._bus.send(message, sender=self, shorthand=icr >> 18 & 3)

    # The timer

    @property
    def deadline(self) -> int | None:
        """When the timer is due, in virtual nanoseconds; None: never."""
        return self._timer.deadline

    def expire(self, now: int) -> None:
        """Raise the timer's interrupt if it is due at *now*; what was missed comes once."""
        if self.deadline is None or now < self.deadline:
            return
        self._timer.expire(now)
        lvt = self._regs[_LVTT]
        if not lvt & _MASKED:
            self._request(lvt & 0xFF, level_triggered=False)

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE; a write counts only in that mode, and if it is enabled."""
        return self._timer.tsc_deadline if self.is_enabled else 0

    @tsc_deadline.setter
    def tsc_deadline(self, value: int) -> None:
        if self.is_enabled:
            self._timer.tsc_deadline = value

    # Registers

    def mmio_read(self, offset: int, size: int) -> int:
        """Read from its page; all ones unless in xAPIC mode, 0 beyond a register's 32 bits."""
        if not self.is_enabled or self.is_x2apic:
            return (1 << 8 * size) - 1
        byte = offset & 0xF
        if byte + size > 4:
            return 0
        return self._read(offset & 0xFF0) >> 8 * byte & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write to its page: 32 bits at a register, all else is lost."""
        if self.is_enabled and not self.is_x2apic and size == 4 and not offset & 0xF:
            self._write(offset, value & _LOW)

    def x2apic_read(self, index: int) -> int | None:
        """Read MSR *index*, 0x800 to 0x8ff; None where that is illegal."""
        offset = (index - 0x800) << 4
        if not self.is_x2apic or offset not in _X2APIC_READABLE:
            return None
        if offset == _ICR:
            return self._regs[_ICR2] << 32 | self._regs[_ICR]
        return self._read(offset)

    def x2apic_write(self, index: int, value: int) -> bool:
        """Write MSR *index*; return False where that is illegal."""
        offset = (index - 0x800) << 4
        if not self.is_x2apic or offset not in _X2APIC_WRITABLE:
            return False
        if offset == _ICR:
            if value & _ICR_RESERVED:
                return False
            self._regs[_ICR2] = value >> 32
            self._regs[_ICR] = value & _LOW & ~_BUSY
            self._command(value & _LOW, value >> 32)
            return True
        if value >> 32 or (offset == _ESR and value) or (offset == _SELF and value >> 8):
            return False
        if offset == _SELF:
            self._request(value, level_triggered=False)
        else:
            self._write(offset, value)
        return True

    def _read(self, offset: int) -> int:
        if offset in self._regs:
            return self._regs[offset]
        if _ISR <= offset < _ESR:
            bits = {_ISR: self._isr, _TMR: self._tmr, _IRR: self._irr}[offset & 0x380]
            return bits >> (offset & 0x70) * 2 & _LOW
        if offset == _ID:
            return self.id if self.is_x2apic else self.xapic_id << 24
        return {
            _VERSION: _VERSION_ID,
            _PPR: self._ppr,
            _TMICT: self._timer.initial,
            _TMCCT: self._timer.current,
        }.get(offset, 0)

    def _write(self, offset: int, value: int) -> None:
        if offset == _ID and not self.is_x2apic:
            self.xapic_id = value >> 24
        elif offset == _TPR:
            self._set_tpr(value & 0xFF)
        elif offset == _EOI:
            self.end_interrupt()
        elif offset == _LDR and not self.is_x2apic:
            self._regs[_LDR] = value & 0xFF00_0000
        elif offset == _DFR and not self.is_x2apic:
            self._regs[_DFR] = value | 0x0FFF_FFFF
        elif offset == _SPIV:
            self._set_spurious(value)
        elif offset == _ESR:
            self._regs[_ESR] = 0
        elif offset == _ICR:
            self._regs[_ICR] = value & ~_BUSY
            self._command(value, self._regs[_ICR2] >> 24)
        elif offset == _ICR2:
            self._regs[_ICR2] = value & 0xFF00_0000
        elif offset in _LVT_MASKS:
            self._set_lvt(offset, value)
        elif offset == _TMICT:
            self._timer.start(value)
        elif offset == _TDCR:
            self._regs[_TDCR] = value & 0xB
            self._timer.set_divide(_divisor(value))

    def _set_spurious(self, value: int) -> None:
        self._regs[_SPIV] = value & 0x3FF
        if not value & _SOFTWARE_ENABLE:
            for offset in _LVT_MASKS:
                self._regs[offset] |= _MASKED

    def _set_lvt(self, offset: int, value: int) -> None:
        if not self._regs[_SPIV] & _SOFTWARE_ENABLE:
            value |= _MASKED
        self._regs[offset] = value & _LVT_MASKS[offset]
        if offset == _LVTT:
            self._timer.set_mode(value >> 17 & 3)
        elif offset == _LVT0:
            self.events.wake()  # the 8259 pair may come through now

    # State

    def get_state(self) -> bytes:
        """Return the page that KVM_GET_LAPIC gives."""
        page = bytearray(_PAGE)
        for offset in (_ID, _VERSION, _PPR, *_KEPT, *range(_ISR, _ESR, 0x10), _TMICT, _TMCCT):
            page[offset : offset + 4] = self._read(offset).to_bytes(4, "little")
        page[_ID : _ID + 4] = bytes((0, 0, 0, self.id & 0xFF if self.is_x2apic else self.xapic_id))
        return bytes(page)

    def set_state(self, page: bytes) -> None:
        """Take the page that KVM_SET_LAPIC gives."""

        def word(offset: int) -> int:
            return int.from_bytes(page[offset : offset + 4], "little")

        def bits(offset: int) -> int:
            return sum(word(offset + 0x10 * n) << 32 * n for n in range(8))

        for offset in _KEPT:
            self._regs[offset] = word(offset)
        self.xapic_id = word(_ID) >> 24
        if self.is_x2apic:
            self._set_x2apic_ldr()
        self._isr, self._tmr, self._irr = bits(_ISR), bits(_TMR), bits(_IRR)
        self._timer.set_mode(self._regs[_LVTT] >> 17 & 3)
        self._timer.divide = _divisor(self._regs[_TDCR])
        initial, left = word(_TMICT), min(word(_TMCCT), word(_TMICT))
        if not left and self._regs[_LVTT] & _PERIODIC:
            left = initial
        self._timer.start(initial, left)
        self.events.wake()


def _divisor(register: int) -> int:
    """Return what TDCR divides by: bits 3, 1 and 0 are the power of two, less one."""
    power = (register & 3 | register >> 1 & 4) + 1 & 7
    return 1 << power
