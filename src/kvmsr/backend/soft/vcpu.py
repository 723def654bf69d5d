# SPDX-License-Identifier: Apache-2.0
"""
A vCPU of the kernel's
----------------------

What struct kvm_vcpu is: the CPU, what waits to be injected or completed, and the ioctls that look
at it and change it. Running it is in ``run``.
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX, GuestDbg, Mp
from kvmsr.abi import cpu as abi
from kvmsr.abi.run import Run
from kvmsr.backend.soft import emulation, events, exits, io, signals
from kvmsr.backend.soft.clock import GuestClock
from kvmsr.backend.soft.cpu import registers
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.cpu.vmcb import SegmentState, StartState
from kvmsr.backend.soft.features import cr4_reserved
from kvmsr.backend.soft.msr.access import MsrRet
from kvmsr.backend.soft.msr.common import set_apic_base
from kvmsr.backend.soft.msr.cpuid import GuestCpuid
from kvmsr.backend.soft.msr.state import MsrState
from kvmsr.backend.soft.tables import CpuidEntry

if TYPE_CHECKING:
    from kvmsr.backend.soft.irqchip import Lapic
    from kvmsr.backend.soft.vm import Vm

__all__ = ("MMAP_SIZE", "Vcpu")

MMAP_SIZE: Final = 0x3000

_BOOT_BASE: Final = 0xFEE0_0800
_BSP: Final = 1 << 8
_CR0_RESET: Final = 0x6000_0010
_CR0_PG: Final = 1 << 31
_CR4_PAE: Final = 1 << 5
_LME, _LMA = 1 << 8, 1 << 10
_TF: Final = 1 << 8
_APIC_ENABLED: Final = 1 << 11
_CPUID_APIC: Final = 1 << 9
_RESET_RDX: Final = 0x600
_RESET_CS: Final = SegmentState(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B)


class Vcpu:
    """
    One vCPU.

    :ivar run: the kvm_run page.
    :ivar complete_emulation: what is left to do of the instruction that made the guest exit; done
        first thing in the next KVM_RUN, once. True: the guest goes on.
    :ivar serve: in KVM_RUN, who answers exits on the spot; None: user space, outside.
    :ivar exception: the exception to be injected, with its error code; None: none.
    :ivar last_events: what is known of it and of interrupts besides.
    :ivar regs_changes: how often user space has set the general-purpose registers.
    :ivar wanted: another thread wants this vCPU's attention.
    :ivar kicked: KVM_RUN is to return.
    :ivar signal_mask: what KVM_SET_SIGNAL_MASK said, as bits.
    :ivar masked: in KVM_RUN, the signals that do not end it; None: none is looked for.
    """

    kind = "vcpu"

    def __init__(self, vm: "Vm", vcpu_id: int) -> None:
        self.vm = vm
        self.id = vcpu_id
        self.page = mmap.mmap(-1, MMAP_SIZE)
        self.run: Any = Run.from_buffer(self.page)
        self.cpu: Engine = Engine(self)
        self.msrs = MsrState()
        self.tsc_offset = 0
        self.has_begun = self.has_run = self.enforce_pv_cpuid = False
        self.guest_debug = 0
        self.debug_registers = [0] * 8
        self.dr = [0] * 8
        self.cr8 = 0
        self.complete_emulation: Callable[[Vcpu], bool] | None = None
        self.deferred: tuple[int, int | None, int | None] = (0, None, None)
        self.exception: tuple[int, int | None] | None = None
        self.last_events = events.LastEvents()
        self.regs_changes = 0
        self.nmi_pending = 0
        self.pv_unhalted = False
        self.sipi_vector = 0
        self.wanted = self.kicked = self.shut_down = False
        self.memory_generation = -1
        self.lapic_page: int | None = None
        self.map_lapic_at: Callable[[int], None] | None = None
        self.mapped: dict[int, tuple[int, int, bool]] = {}
        self.thread = 0
        self.exited = False
        self.serve: Callable[[], bool] | None = None
        self.signal_mask: int | None = None
        self.masked: int | None = None
        self.held: signals.Held | None = None
        self.set_cpuid(())
        self.queued_interrupt: int | None = None
        self._own_apic_base = _BOOT_BASE | (_BSP if vcpu_id == vm.boot_cpu else 0)
        self.lapic: Lapic | None = None
        if vm.chip is not None:
            self.lapic = vm.chip.add_lapic(self.id, GuestClock(self), self, vcpu_id == vm.boot_cpu)
            vm.map_lapic(self)
        runs = vcpu_id == vm.boot_cpu or vm.chip is None
        self.mp_state = Mp.RUNNABLE if runs else Mp.UNINITIALIZED
        self.reset()

    def close(self) -> None:
        """Give the CPU and the page back."""
        self.complete_emulation = None
        self.vm.leave(self)
        self.cpu.close()

    def reset(self) -> None:
        """Bring the CPU into its state after RESET or INIT (SDM volume 3, table 10-1)."""
        engine = self.cpu
        amd = self.vm.profile.vendor == "amd"  # svm_vcpu_reset leaves "accessed" and TR's size out
        accessed = int(not amd)
        cs = replace(_RESET_CS, attributes=_RESET_CS.attributes & ~1 | accessed)
        ss = SegmentState(0, 0, 0xFFFF, 0x92 | accessed)
        engine.load(StartState(cs=cs, ss=ss, cr0=_CR0_RESET, rip=0xFFF0))
        sregs = abi.Sregs()
        registers.get_sregs(engine, sregs)
        for name, kind, s in (
            ("fs", 3, 1),
            ("gs", 3, 1),
            ("ldt", 2, 0),
            ("tr", 3 if amd else 11, 0),
        ):
            setattr(sregs, name, abi.Segment(limit=0xFFFF, type=kind, present=1, s=s))
        registers.set_hidden(engine, sregs)
        for number in range(16):
            engine.regs[number] = 0
        engine.regs[2] = _RESET_RDX
        self.dr[:] = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]
        self.cr8 = 0
        self.exception = None
        self.nmi_pending = 0
        engine.nmi_masked = False
        self.msrs.reset(self.vm.profile)

    def reset_by_init(self) -> None:
        """Do an INIT."""
        self.reset()
        if self.lapic is not None:
            self.lapic.reset(init=True)

    def start_at(self, vector: int) -> None:
        """Do a start-up IPI: real mode, at page *vector*."""
        sregs = abi.Sregs()
        self.get_sregs(sregs)
        sregs.cs.selector, sregs.cs.base = vector << 8, vector << 12
        registers.set_sregs(self.cpu, sregs)
        self.cpu.regs[16] = 0

    # What the MSR path asks of a vCPU

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.lapic.apic_base if self.lapic is not None else self._own_apic_base

    @apic_base.setter
    def apic_base(self, value: int) -> None:
        if self.lapic is not None:
            with self.vm.lock:
                moves = (self.lapic.apic_base ^ value) >> 12
                self.lapic.apic_base = value
                if moves:
                    self.memory_generation = -1  # to be mapped anew
                    self.cpu.interrupt()
        else:
            self._own_apic_base = value

    def tsc(self) -> int:
        """Return the guest's TSC."""
        return self.vm.clock.tsc() + self.tsc_offset & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def tsc_khz(self) -> int:
        """How fast the guest's TSC counts."""
        return self.vm.clock.tsc_khz

    def kvmclock(self) -> tuple[int, int]:
        """Return the VM's kvmclock, in nanoseconds, and the guest's TSC at that moment."""
        # Of one reading: what passed between two would differ from vCPU to vCPU.
        now = self.vm.clock.now()
        tsc = now * self.tsc_khz // 1_000_000 + self.tsc_offset
        return now + self.vm.clock_offset, tsc & 0xFFFF_FFFF_FFFF_FFFF

    def adjust_tsc(self, delta: int) -> None:
        """Move the guest's TSC."""
        self.tsc_offset += delta

    def queue_exception(self, vector: int, error_code: int | None) -> None:
        """Have an exception injected before the guest's next instruction."""
        events.queue(self, vector, error_code)

    def guest_page(self, gpa: int) -> bool:
        """Return whether there is memory at a guest-physical address."""
        return self.vm.host_address(gpa, 1) is not None

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write to guest-physical memory; return whether it is there."""
        return self.vm.write_guest(gpa, data)

    # What the LAPIC asks of a vCPU; under the VM's lock

    def wake(self) -> None:
        """An interrupt may be deliverable."""
        self.attend()

    def nmi(self) -> None:
        """Take an NMI."""
        self.nmi_pending = min(self.nmi_pending + 1, 1 if self.cpu.nmi_masked else 2)
        self.attend()

    def unhalt(self) -> None:
        """End a HLT, or the next one (KVM_HC_KICK_CPU)."""
        self.pv_unhalted = True
        self.attend()

    def smi(self) -> None:
        """SMIs end here: there is no SMM."""

    def init(self) -> None:
        """Take an INIT."""
        self.vm.pending_init.add(self.id)
        self.attend()

    def sipi(self, vector: int) -> None:
        """Take a start-up IPI."""
        if self.mp_state == Mp.INIT_RECEIVED or self.id in self.vm.pending_init:
            self.sipi_vector = vector
            self.vm.pending_sipi.add(self.id)
            self.attend()

    def attend(self) -> None:
        """Make the vCPU look for what waits for it."""
        if self.thread == threading.get_ident():
            self.cpu.open_window()
            if self.nmi_pending:
                self.cpu.open_nmi_window()
            if self.id in self.vm.pending_init or self.id in self.vm.pending_sipi:
                self.cpu.interrupt()
            return
        self.wanted = True
        self.cpu.interrupt()
        self.vm.changed.notify_all()

    def kick(self) -> None:
        """Make KVM_RUN return; from any thread."""
        self.run.immediate_exit = 1
        self.kicked = True
        with self.vm.lock:
            self.wanted = True
            self.cpu.interrupt()
            self.vm.changed.notify_all()

    def signalled(self) -> bool:
        """Return whether a signal waits for the thread that is in KVM_RUN."""
        if self.masked is None:
            return False
        came = self.held is not None and self.held.came()
        return came or bool(signals.pending() & ~self.masked)

    # What the CPU asks of a vCPU

    def exit(self, code: int, info: int) -> bool:
        """Handle an intercept."""
        return exits.HANDLERS[code](self, info)

    def syscall(self) -> None:
        """Do a SYSCALL."""
        exits.syscall(self)

    def invalid(self) -> bool:
        """Handle an instruction that the CPU does not know."""
        return exits.invalid(self)

    def skipped(self) -> bool:
        """See :func:`kvmsr.backend.soft.emulation.skipped`."""
        return emulation.skipped(self)

    def port_in(self, port: int, size: int) -> int | None:
        """Read a port, unless the guest may not or user space is to answer."""
        state = self.cpu.state
        if state.hflags.value & 3 > state.eflags.value >> 12 & 3:
            return None
        value = self.vm.port_in(port, size)
        return io.read_in_place(self, port, size) if value is None else value

    def port_out(self, port: int, size: int, value: int) -> bool:
        """Write to a port, unless the guest may not or user space is to take it."""
        state = self.cpu.state
        if state.hflags.value & 3 > state.eflags.value >> 12 & 3:
            return False
        return self.vm.port_out(port, size, value) or io.write_in_place(self, port, size, value)

    # What ioctls read and write

    def get_regs(self, regs: Any) -> None:
        """Fill a struct kvm_regs; the debugger's single step does not show."""
        registers.get_regs(self.cpu, regs)
        if self.guest_debug & GuestDbg.SINGLESTEP:
            regs.rflags &= ~_TF

    def set_regs(self, regs: Any) -> None:
        """Take a struct kvm_regs; an exception that is pending is dropped."""
        if regs.rip != self.cpu.regs[16]:
            self.cpu.flush_code()  # who sets RIP may have put code there
        registers.set_regs(self.cpu, regs)
        self.regs_changes += 1
        events.drop_pending(self)

    def get_sregs(self, sregs: Any) -> None:
        """Fill a struct kvm_sregs or kvm_sregs2."""
        registers.get_sregs(self.cpu, sregs)
        sregs.cr8, sregs.apic_base = self.get_cr8(), self.apic_base
        if hasattr(sregs, "interrupt_bitmap"):
            sregs.interrupt_bitmap[:] = [0] * 4
            if self.queued_interrupt is not None:
                sregs.interrupt_bitmap[self.queued_interrupt // 64] = (
                    1 << self.queued_interrupt % 64
                )

    def set_sregs(self, sregs: Any) -> None:
        """
        Take a struct kvm_sregs or kvm_sregs2.

        :raises OSError: EINVAL for a state that no CPU can be in.
        """
        if not self._is_valid(sregs) or set_apic_base(self, sregs.apic_base, True) != MsrRet.OK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        registers.set_sregs(self.cpu, sregs)
        self.cpu.flush_code()
        self.set_cr8(sregs.cr8)  # an illegal one is passed over
        for word, bits in enumerate(getattr(sregs, "interrupt_bitmap", ())):
            if bits and self.lapic is None:
                self.queued_interrupt = word * 64 + bits.bit_length() - 1

    def _is_valid(self, sregs: Any) -> bool:
        """kvm_is_valid_sregs of the kernel."""
        if sregs.cr0 >> 32 or sregs.cr4 & self.cr4_reserved:
            return False
        if sregs.cr0 & _CR0_PG and not sregs.cr0 & 1:
            return False
        if sregs.efer & _LME and sregs.cr0 & _CR0_PG:
            return bool(sregs.cr4 & _CR4_PAE and sregs.efer & _LMA)
        return not (sregs.efer & _LMA or sregs.cs.l)

    def set_cpuid(self, entries: tuple[CpuidEntry, ...]) -> None:
        """Take what CPUID shows the guest."""
        self.cpuid_entries = entries
        self.cpuid = GuestCpuid(entries, self.vm.profile)
        self._leaves = {}
        for function, index, flags, *registers_ in entries:
            at = index if flags & CPUID_FLAG_SIGNIFCANT_INDEX else None
            self._leaves[function, at] = tuple(registers_)
        self.cr4_reserved = cr4_reserved(self._leaves)

    def guest_cpuid(self, function: int, index: int) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX of a leaf, as the guest sees them now."""
        leaf = self._leaves.get((function, index)) or self._leaves.get((function, None))
        if leaf is None:
            return (0, 0, 0, 0)
        eax, ebx, ecx, edx = leaf
        if function == 1 and not self.apic_base & _APIC_ENABLED:
            edx &= ~_CPUID_APIC
        return eax, ebx, ecx, edx

    def set_dr(self, number: int, value: int) -> bool:
        """Set a debug register for the guest; return False for reserved bits."""
        if number >= 6:
            if value >> 32:
                return False
            value = value | 0xFFFF_0FF0 if number == 6 else value & ~0xD000 | 0x400
        self.dr[number] = value
        self.update_breakpoints()
        return True

    def update_breakpoints(self) -> None:
        """Set the CPU's breakpoints: the debugger's, or else the guest's own."""
        registers_ = self.debug_registers if self.guest_debug & GuestDbg.USE_HW_BP else self.dr
        self.cpu.set_breakpoints(list(registers_[:4]), registers_[7] & 0xFFFF_FFFF | 0x400)

    # Interrupts

    def has_interrupt(self) -> bool:
        """Return whether an interrupt waits for the guest to take it."""
        if self.lapic is None:
            return self.queued_interrupt is not None
        assert self.vm.chip is not None
        return self.vm.chip.has_interrupt(self.lapic)

    @property
    def nmi_waits_for_shadow(self) -> bool:
        """Whether an NMI could be injected, but for the shadow of STI or MOV SS."""
        return self.nmi_pending > 0 and self.cpu.shadow and not self.cpu.nmi_masked

    @property
    def wants_window(self) -> bool:
        """Whether user space is to be told when the guest can take an interrupt."""
        asked = self.lapic is None and self.queued_interrupt is None
        return asked and bool(self.run.request_interrupt_window)

    def take_interrupt(self) -> int | None:
        """Acknowledge the interrupt that is due, and return its vector."""
        if self.lapic is None:
            vector, self.queued_interrupt = self.queued_interrupt, None
            return vector
        assert self.vm.chip is not None
        return self.vm.chip.interrupt_for(self.lapic)

    def runnable(self) -> bool:
        """Return whether something ends a HLT (kvm_vcpu_has_events)."""
        if self.exception is not None or self.pv_unhalted:
            return True
        if self.nmi_pending and not self.cpu.nmi_masked:
            return True
        return self.cpu.interruptible and self.has_interrupt()

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
