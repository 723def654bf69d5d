# SPDX-License-Identifier: Apache-2.0
"""
A vCPU of the kernel's
----------------------

What struct kvm_vcpu is: the CPU and the state around it, in parts; and how other threads, devices
and the MSR path get at them. Whatever does something with a whole vCPU stands above this module:
its ioctls, the exit handlers, and ``run``.
"""

import threading
from collections.abc import Callable
from typing import Any, Final

from kvmsr.abi import Mp
from kvmsr.backend.soft.clock import GuestClock
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.cpu_memory import CpuMemory
from kvmsr.backend.soft.debugging import Debugging
from kvmsr.backend.soft.emulation import Emulation
from kvmsr.backend.soft.events import Events
from kvmsr.backend.soft.irqchip import IrqChip, Lapic
from kvmsr.backend.soft.msr.cpuid import GuestCpuid
from kvmsr.backend.soft.msr.pv import update_clock
from kvmsr.backend.soft.msr.state import MsrState
from kvmsr.backend.soft.page import RunPage
from kvmsr.backend.soft.signals import Watch
from kvmsr.backend.soft.vm import Vm

__all__ = ("Vcpu",)

_BOOT_BASE: Final = 0xFEE0_0800
_BSP: Final = 1 << 8
_IF: Final = 1 << 9


class Vcpu:
    """
    One vCPU.

    :ivar page: the kvm_run page.
    :ivar has_begun: it has been in KVM_RUN.
    :ivar has_run: it has entered the guest.
    :ivar complete_emulation: what is left to do of the instruction that made the guest exit; done
        first thing in the next KVM_RUN, once. True: the guest goes on.
    :ivar serve: in KVM_RUN, who answers exits on the spot; None: user space, outside.
    :ivar regs_changes: how often user space has set the general-purpose registers.
    :ivar init_pending: an INIT waits; *sipi_pending*: a start-up IPI, to page *sipi_vector*.
    :ivar wanted: another thread wants this vCPU's attention.
    :ivar kicked: KVM_RUN is to return.
    :ivar thread: the thread that is in KVM_RUN; 0: none.
    """

    def __init__(self, vm: Vm, vcpu_id: int) -> None:
        self.vm, self.id = vm, vcpu_id
        self.page = RunPage()
        self.run: Any = self.page.run
        self.cpu = Engine()
        self.clock = GuestClock(vm.clock)
        self.signals = Watch()
        self.events = Events(self.cpu)
        self.debugging = Debugging(self.cpu, self.page, vm.profile)
        self.emulation = Emulation(self.cpu, self.events, self.debugging, vm.profile)
        self.memory = CpuMemory(self.cpu, vm.slots)
        self.msrs = MsrState()
        self.cpuid = GuestCpuid((), vm.profile)
        self.has_begun = self.has_run = self.enforce_pv_cpuid = False
        self.complete_emulation: Callable[[Vcpu], bool] | None = None
        self.deferred: tuple[int, int | None, int | None] = (0, None, None)
        self.serve: Callable[[], bool] | None = None
        self.regs_changes = 0
        self.init_pending = self.sipi_pending = False
        self.sipi_vector = 0
        self.wanted = self.kicked = self._was_let_out = False
        self.thread = 0
        self.skipped = self.emulation.skipped
        self.queue_exception = self.events.queue
        is_bsp = vcpu_id == vm.boot_cpu
        self.cr8 = 0  # this and the next: where there is no local APIC to have them
        self._own_apic_base = _BOOT_BASE | (_BSP if is_bsp else 0)
        self.lapic: Lapic | None = None
        if vm.chip is not None:
            self._add_lapic(vm.chip, is_bsp=is_bsp)
        self.mp_state = Mp.RUNNABLE if is_bsp or vm.chip is None else Mp.UNINITIALIZED

    def _add_lapic(self, chip: IrqChip, *, is_bsp: bool) -> None:
        lapic = self.lapic = chip.add_lapic(self.id, self.clock, self, is_bsp)
        self.memory.add_apics(lapic, chip.ioapic, self.vm.lock, self.vm.timers.rearm)
        self.vm.timers.add(lapic)

    def close(self) -> None:
        """Leave the VM, and give the CPU back."""
        self.complete_emulation = None
        with self.vm.lock:
            del self.vm.vcpus[self.id]
            if self.lapic is not None and self.vm.chip is not None:
                self.vm.timers.remove(self.lapic)
                self.vm.chip.remove_lapic(self.id)
            if self.has_begun:
                self.vm.end()
        self.cpu.close()

    # Interrupts: the local APIC's, or where there is none, user space's

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.lapic.apic_base if self.lapic is not None else self._own_apic_base

    @apic_base.setter
    def apic_base(self, value: int) -> None:
        if self.lapic is None:
            self._own_apic_base = value
            return
        with self.vm.lock:
            moves = (self.lapic.apic_base ^ value) >> 12
            self.lapic.apic_base = value
            if moves:
                self.memory.invalidate()
                self.cpu.interrupt()

    def get_cr8(self) -> int:
        """Return CR8."""
        return self.lapic.cr8 if self.lapic is not None else self.cr8

    def set_cr8(self, value: int) -> bool:
        """Set CR8; return False for reserved bits."""
        if value & ~15:
            return False
        if self.lapic is None:
            self.cr8 = value
        else:
            with self.vm.lock:
                self.lapic.cr8 = value
        return True

    def has_interrupt(self) -> bool:
        """Return whether an interrupt waits for the guest to take it."""
        if self.lapic is None or self.vm.chip is None:
            return self.events.interrupt is not None
        return self.vm.chip.has_interrupt(self.lapic)

    def take_interrupt(self) -> int | None:
        """Acknowledge the interrupt that is due, and return its vector."""
        if self.lapic is None or self.vm.chip is None:
            vector, self.events.interrupt = self.events.interrupt, None
            return vector
        return self.vm.chip.interrupt_for(self.lapic)

    @property
    def wants_window(self) -> bool:
        """Whether user space asks for an exit as soon as the guest can take an interrupt."""
        asked = self.lapic is None and self.events.interrupt is None
        return asked and bool(self.run.request_interrupt_window)

    def runnable(self) -> bool:
        """Return whether something ends a HLT (kvm_vcpu_has_events)."""
        events = self.events
        if events.exception is not None or events.unhalted or events.nmi_is_deliverable:
            return True
        return self.cpu.interruptible and self.has_interrupt()

    # What comes from the local APIC; under the VM's lock

    def wake(self) -> None:
        """An interrupt may be deliverable."""
        self.attend()

    def nmi(self) -> None:
        """Take an NMI."""
        self.events.add_nmi()
        self.attend()

    def unhalt(self) -> None:
        """End a HLT, or the next one."""
        self.events.unhalted = True
        self.attend()

    def smi(self) -> None:
        """SMIs end here: there is no SMM."""

    def init(self) -> None:
        """Take an INIT."""
        self.init_pending = True
        self.attend()

    def sipi(self, vector: int) -> None:
        """Take a start-up IPI."""
        if self.mp_state == Mp.INIT_RECEIVED or self.init_pending:
            self.sipi_vector = vector
            self.sipi_pending = True
            self.attend()

    # What other threads ask; under the VM's lock, but for kick

    @property
    def has_old_memory(self) -> bool:
        """Whether it executes with memory that may no longer be there."""
        return self.cpu.running and not self.memory.is_current

    @property
    def looks_for_signals(self) -> bool:
        """Whether a signal ends its KVM_RUN."""
        return self.signals.active

    @property
    def wakes(self) -> bool:
        """Whether it sleeps and has what ends that."""
        starts = self.init_pending or self.sipi_pending
        return starts or (self.mp_state == Mp.HALTED and self.runnable())

    @property
    def sleeps_for_good(self) -> bool:
        """Whether only another vCPU or user space can wake it."""
        if self.mp_state != Mp.HALTED:
            return self.mp_state in (Mp.UNINITIALIZED, Mp.INIT_RECEIVED)
        takes_interrupts = self.cpu.state.eflags.value & _IF
        return not (takes_interrupts or self.vm.chip is None or self.vm.chip.may_send_nmi)

    @property
    def has_to_come_out(self) -> bool:
        """Whether it has to leave the guest for a moment, for what is done outside of it."""
        return (
            not self.memory.is_current
            or self.init_pending
            or self.sipi_pending
            or self.vm.execution.contended
        )

    def code_written(self, host_address: int, size: int) -> None:
        """Translate code there again, before more is executed."""
        self.memory.written(host_address, size)
        if self.thread and self.mp_state == Mp.RUNNABLE:  # it executes, or is about to
            self.wanted = True
            self.cpu.interrupt()
            self.vm.changed.notify_all()  # the ticker repeats it until it comes out

    def attend(self) -> None:
        """Look for what waits for it."""
        if self.thread == threading.get_ident():
            self.cpu.open_window()
            if self.events.nmis:
                self.cpu.open_nmi_window()
            if self.init_pending or self.sipi_pending:
                self.cpu.interrupt()
            return
        self.wanted = True
        self.cpu.interrupt()
        self.vm.changed.notify_all()

    def remind(self, *, contended: bool) -> bool:
        """Have it come out of the guest if it should; return whether it should."""
        # The first request may have met a store of the engine's own, and nothing reports a signal.
        should = self.cpu.running and (self.wanted or contended or self.signals.active)
        if should:
            self.cpu.interrupt()
        return should

    def let_out(self) -> None:
        """Have KVM_RUN return as for a signal, unless it has since it fell asleep."""
        if self.thread and not self._was_let_out:
            self._was_let_out = self.kicked = True

    def stirred(self) -> None:
        """A vCPU has woken up, so that this one may."""
        self._was_let_out = False

    def kick(self) -> None:
        """Make KVM_RUN return; from any thread."""
        self.run.immediate_exit = 1
        self.kicked = True
        with self.vm.lock:
            self.wanted = True
            self.cpu.interrupt()
            self.vm.changed.notify_all()

    def clock_changed(self) -> None:
        """Write the clock to the guest again: kvmclock was set."""
        update_clock(self)
