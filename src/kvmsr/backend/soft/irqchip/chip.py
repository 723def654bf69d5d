# SPDX-License-Identifier: Apache-2.0
"""
The interrupt controllers together
----------------------------------

Lines and messages find their way to the vCPUs (arch/x86/kvm/irq_comm.c and irq.c).
"""

import errno
import os
from collections.abc import Iterable
from typing import Any, Final

from kvmsr.abi import Chip
from kvmsr.backend.soft.irqchip.events import LapicEvents
from kvmsr.backend.soft.irqchip.ioapic import Ioapic
from kvmsr.backend.soft.irqchip.lapic import Lapic
from kvmsr.backend.soft.irqchip.message import Message
from kvmsr.backend.soft.irqchip.pic import Pic
from kvmsr.backend.soft.irqchip.pit import Pit
from kvmsr.backend.soft.irqchip.routing import default_routes, find_targets, make_routes
from kvmsr.backend.soft.irqchip.timer import Clock

__all__ = ("IrqChip",)

_TIMER_GSI: Final = 0
_REDIRECTION_HINT: Final = 1 << 3  # of an MSI's address


class IrqChip:
    """
    All controllers of a VM.

    :ivar pic: the 8259 pair.
    :ivar ioapic: the I/O APIC.
    :ivar reenables_lint0: whether the boot CPU's LINT0 takes the 8259's interrupts after RESET.
    """

    def __init__(self) -> None:
        self.reenables_lint0 = True
        self.pic = Pic()
        self.pic.on_change = self._pic_changed
        self.pic.on_ack = self._pic_acked
        self.pic.on_mask = self._pic_masked
        self.ioapic = Ioapic(self.send, self._pin_acked, self._pin_unmasked)
        self._lapics: dict[int, Lapic] = {}
        self._pit: Pit | None = None
        self._routes = default_routes()

    def add_lapic(self, apic_id: int, clock: Clock, events: LapicEvents, is_bsp: bool) -> Lapic:
        """Add the local APIC of a new vCPU."""
        lapic = self._lapics[apic_id] = Lapic(apic_id, clock, events, self, is_bsp=is_bsp)
        return lapic

    def remove_lapic(self, apic_id: int) -> None:
        """Forget the local APIC of a vCPU that is no more."""
        del self._lapics[apic_id]

    @property
    def lapics(self) -> Iterable[Lapic]:
        """The local APICs."""
        return self._lapics.values()

    @property
    def may_send_nmi(self) -> bool:
        """Whether a line is wired to NMI, as a watchdog does with the timer's."""
        return self.ioapic.may_send_nmi or any(lapic.takes_pic_nmis for lapic in self.lapics)

    def attach_pit(self, pit: Pit) -> None:
        """Let the 8254 know what becomes of its interrupts."""
        self._pit = pit

    # Lines

    def set_irq(self, gsi: int, level: bool) -> int:
        """Set a line; return 1 and more: delivered, 0: coalesced, less: nobody listens."""
        status = -1
        for kind, first, second in self._routes.get(gsi, ()):
            if kind == "pic":
                result = self.pic.set_line(first, level)
            elif kind == "ioapic":
                result = self.ioapic.set_line(first, level)
            else:
                result = self.signal_msi(first, second) if level else -1
            if result >= 0:
                status = result + max(status, 0)
        return status

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt; return how many took it."""
        # KVM does not look at the level bit: an MSI always asserts.
        message = Message.of_msi(address, data)._replace(level=True)
        return self.send(message, to_one=bool(address & _REDIRECTION_HINT))

    def set_routing(self, entries: Iterable[Any]) -> None:
        """Replace the routes; raises as :func:`~kvmsr.backend.soft.irqchip.routing.make_routes`."""
        self._routes = make_routes(entries)

    # Messages

    def send(
        self,
        message: Message,
        *,
        sender: Lapic | None = None,
        shorthand: int = 0,
        to_one: bool = False,
    ) -> int:
        """Send a message to all that it is for, or *to_one* of them; return how many took it."""
        lapics = self._lapics.values()
        targets = find_targets(lapics, message, sender, shorthand, to_one=to_one)
        return sum(lapic.accept(message) for lapic in targets)

    def end_of_interrupt(self, vector: int, *, level_triggered: bool) -> None:
        """Pass the end of an interrupt on to the I/O APIC."""
        self.ioapic.end_of_interrupt(vector, level_triggered=level_triggered)

    def has_interrupt(self, lapic: Lapic) -> bool:
        """Return whether an interrupt waits for a vCPU."""
        return self._pic_has(lapic) or lapic.pending_vector() is not None

    def interrupt_for(self, lapic: Lapic) -> int | None:
        """Acknowledge the interrupt that is due on a vCPU, and return its vector."""
        return self.pic.acknowledge() if self._pic_has(lapic) else lapic.acknowledge()

    def _pic_has(self, lapic: Lapic) -> bool:
        return self.pic.output and lapic.accepts_pic_interrupt()

    # What comes from the controllers

    def _pic_changed(self) -> None:
        for lapic in self._lapics.values():
            if lapic.accepts_pic_interrupt():
                lapic.events.wake()

    def _pic_acked(self, irq: int) -> None:
        if self._pit is not None and irq == _TIMER_GSI:
            self._pit.acked()

    def _pic_masked(self, irq: int, masked: bool) -> None:
        if self._pit is not None and irq == _TIMER_GSI and not masked:
            self._pit.unmasked()

    def _is_timer_pin(self, pin: int) -> bool:
        return ("ioapic", pin, 0) in self._routes.get(_TIMER_GSI, ())

    def _pin_acked(self, pin: int) -> None:
        if self._pit is not None and self._is_timer_pin(pin):
            self._pit.acked()

    def _pin_unmasked(self, pin: int) -> None:
        if self._pit is not None and self._is_timer_pin(pin):
            self._pit.unmasked()

    # State

    def get_state(self, state: Any) -> None:
        """
        Fill a struct kvm_irqchip with the chip that it names.

        :raises OSError: EINVAL for no chip.
        """
        if state.chip_id in (Chip.PIC_MASTER, Chip.PIC_SLAVE):
            state.chip.pic = self.pic.get_state(state.chip_id)
        elif state.chip_id == Chip.IOAPIC:
            self.ioapic.get_state(state.chip.ioapic)
        else:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def set_state(self, state: Any) -> None:
        """Take a struct kvm_irqchip; raises as :meth:`get_state`."""
        if state.chip_id in (Chip.PIC_MASTER, Chip.PIC_SLAVE):
            self.pic.set_state(state.chip_id, state.chip.pic)
        elif state.chip_id == Chip.IOAPIC:
            self.ioapic.set_state(state.chip.ioapic)
        else:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
