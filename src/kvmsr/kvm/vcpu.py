# SPDX-License-Identifier: Apache-2.0
"""
The vCPU handle
---------------

A virtual CPU: its registers, and what else its ioctls get and set. Running it is in ``running``.
"""

from collections.abc import Iterable, Mapping

from kvmsr.abi import Mp, Word, buffer, cpu, ioctls, size_of
from kvmsr.backend import kick_signal
from kvmsr.backend.protocol import Backend
from kvmsr.errors import IoctlError
from kvmsr.kvm import cpuid, msrs, stats
from kvmsr.kvm.handle import read_stats
from kvmsr.kvm.running import RunningVcpu

__all__ = ("Vcpu",)


class Vcpu(RunningVcpu):
    """
    The file descriptor of a vCPU; :meth:`kvmsr.kvm.Vm.create_vcpu` makes them.

    One thread at a time may use a vCPU; :meth:`kick` is for the others.

    :ivar id: its number, also its APIC ID.
    """

    def __init__(
        self,
        backend: Backend,
        fd: int,
        vcpu_id: int,
        mmap_size: int,
        xsave_size: int = 0,
        keep: object = None,
    ) -> None:
        super().__init__(backend, fd, vcpu_id, mmap_size, keep)
        self._xsave_size = xsave_size

    # Registers

    def get_regs(self) -> cpu.Regs:
        """Return the general-purpose registers (KVM_GET_REGS)."""
        regs = cpu.Regs()
        self.ioctl(ioctls.KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: cpu.Regs) -> None:
        """Set the general-purpose registers; drops an exception that is queued (KVM_SET_REGS)."""
        self.ioctl(ioctls.KVM_SET_REGS, regs)

    def get_sregs(self) -> cpu.Sregs:
        """Return segment, table and control registers (KVM_GET_SREGS)."""
        sregs = cpu.Sregs()
        self.ioctl(ioctls.KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: cpu.Sregs) -> None:
        """Set segment, table and control registers (KVM_SET_SREGS)."""
        self.ioctl(ioctls.KVM_SET_SREGS, sregs)

    def get_sregs2(self) -> cpu.Sregs2:
        """Return segment, table and control registers and the PDPTRs (KVM_GET_SREGS2)."""
        sregs = cpu.Sregs2()
        self.ioctl(ioctls.KVM_GET_SREGS2, sregs)
        return sregs

    def set_sregs2(self, sregs: cpu.Sregs2) -> None:
        """Set segment, table and control registers and the PDPTRs (KVM_SET_SREGS2)."""
        self.ioctl(ioctls.KVM_SET_SREGS2, sregs)

    def get_fpu(self) -> cpu.Fpu:
        """Return x87 and SSE registers (KVM_GET_FPU)."""
        fpu = cpu.Fpu()
        self.ioctl(ioctls.KVM_GET_FPU, fpu)
        return fpu

    def set_fpu(self, fpu: cpu.Fpu) -> None:
        """Set x87 and SSE registers (KVM_SET_FPU)."""
        self.ioctl(ioctls.KVM_SET_FPU, fpu)

    def get_xsave(self) -> bytes:
        """Return the XSAVE area: KVM_GET_XSAVE2 where this KVM has it, else KVM_GET_XSAVE."""
        area = buffer(max(self._xsave_size, size_of(cpu.Xsave)))
        self.ioctl(ioctls.KVM_GET_XSAVE2 if self._xsave_size else ioctls.KVM_GET_XSAVE, area)
        return bytes(area)

    def set_xsave(self, area: bytes) -> None:
        """Set the XSAVE area (KVM_SET_XSAVE), as :meth:`get_xsave` gave it."""
        size = max(self._xsave_size, size_of(cpu.Xsave), len(area))
        self.ioctl(ioctls.KVM_SET_XSAVE, buffer(size, area))

    def get_xcrs(self) -> cpu.Xcrs:
        """Return the extended control registers (KVM_GET_XCRS)."""
        xcrs = cpu.Xcrs()
        self.ioctl(ioctls.KVM_GET_XCRS, xcrs)
        return xcrs

    def set_xcrs(self, xcrs: cpu.Xcrs) -> None:
        """Set the extended control registers (KVM_SET_XCRS)."""
        self.ioctl(ioctls.KVM_SET_XCRS, xcrs)

    def get_debugregs(self) -> cpu.Debugregs:
        """Return the debug registers (KVM_GET_DEBUGREGS)."""
        debugregs = cpu.Debugregs()
        self.ioctl(ioctls.KVM_GET_DEBUGREGS, debugregs)
        return debugregs

    def set_debugregs(self, debugregs: cpu.Debugregs) -> None:
        """Set the debug registers (KVM_SET_DEBUGREGS)."""
        self.ioctl(ioctls.KVM_SET_DEBUGREGS, debugregs)

    def get_vcpu_events(self) -> cpu.VcpuEvents:
        """Return exceptions, interrupts, NMIs and SMIs on their way (KVM_GET_VCPU_EVENTS)."""
        events = cpu.VcpuEvents()
        self.ioctl(ioctls.KVM_GET_VCPU_EVENTS, events)
        return events

    def set_vcpu_events(self, events: cpu.VcpuEvents) -> None:
        """Set exceptions, interrupts, NMIs and SMIs on their way (KVM_SET_VCPU_EVENTS)."""
        self.ioctl(ioctls.KVM_SET_VCPU_EVENTS, events)

    def get_mp_state(self) -> Mp:
        """Return whether the vCPU runs, halts, or waits for INIT or SIPI (KVM_GET_MP_STATE)."""
        state = cpu.MpState()
        self.ioctl(ioctls.KVM_GET_MP_STATE, state)
        return Mp(state.mp_state)

    def set_mp_state(self, state: Mp) -> None:
        """Set whether the vCPU runs, halts, or waits for INIT or SIPI (KVM_SET_MP_STATE)."""
        self.ioctl(ioctls.KVM_SET_MP_STATE, cpu.MpState(mp_state=state))

    def translate(self, linear_address: int) -> int | None:
        """Return the guest-physical address behind a linear one (KVM_TRANSLATE), or None."""
        translation = cpu.Translation(linear_address=linear_address)
        self.ioctl(ioctls.KVM_TRANSLATE, translation)
        return translation.physical_address if translation.valid else None

    # CPUID and MSRs

    def get_cpuid2(self) -> cpuid.CpuidTable:
        """Return the CPUID leaves the guest sees (KVM_GET_CPUID2)."""
        try:
            return cpuid.from_kvm(lambda table: self.raw_ioctl(ioctls.KVM_GET_CPUID2, table))
        except OSError as error:
            raise IoctlError("KVM_GET_CPUID2", error.errno or 0) from None

    def set_cpuid2(self, table: Iterable[cpuid.CpuidEntry]) -> None:
        """Set the CPUID leaves the guest sees (KVM_SET_CPUID2), before the first :meth:`run`."""
        self.ioctl(ioctls.KVM_SET_CPUID2, cpuid.to_struct(table))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """
        Return the values that KVM holds of MSRs (KVM_GET_MSRS), whatever the filter says.

        :raises MsrListError: at the first that KVM refuses.
        """
        return msrs.get(self, indices)

    def set_msrs(self, values: Mapping[int, int] | Iterable[tuple[int, int]]) -> None:
        """
        Set MSRs in order (KVM_SET_MSRS), with a host's rights.

        :param values: by index, or pairs of index and value.
        :raises MsrListError: at the first that KVM refuses; those before it are set.
        """
        msrs.set_(self, values.items() if isinstance(values, Mapping) else values)

    # Interrupts and debugging

    def get_lapic(self) -> cpu.LapicState:
        """Return the in-kernel local APIC (KVM_GET_LAPIC)."""
        state = cpu.LapicState()
        self.ioctl(ioctls.KVM_GET_LAPIC, state)
        return state

    def set_lapic(self, state: cpu.LapicState) -> None:
        """Set the in-kernel local APIC (KVM_SET_LAPIC)."""
        self.ioctl(ioctls.KVM_SET_LAPIC, state)

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt (KVM_INTERRUPT), without an in-kernel irqchip only."""
        self.ioctl(ioctls.KVM_INTERRUPT, cpu.Interrupt(irq=vector))

    def nmi(self) -> None:
        """Queue an NMI (KVM_NMI)."""
        self.ioctl(ioctls.KVM_NMI)

    def smi(self) -> None:
        """Queue an SMI (KVM_SMI)."""
        self.ioctl(ioctls.KVM_SMI)

    def setup_mce(self, mcg_cap: int) -> None:
        """Set MCG_CAP, the number of banks included (KVM_X86_SETUP_MCE)."""
        self.ioctl(ioctls.KVM_X86_SETUP_MCE, Word(mcg_cap))

    def set_mce(self, event: cpu.Mce) -> None:
        """Inject a machine check (KVM_X86_SET_MCE)."""
        self.ioctl(ioctls.KVM_X86_SET_MCE, event)

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """
        Set single step and breakpoints (KVM_SET_GUEST_DEBUG).

        :param control: flags of :class:`kvmsr.abi.GuestDbg`; 0 turns debugging off.
        :param debugreg: DR0 to DR7 for hardware breakpoints.
        """
        debug = cpu.GuestDebug(control=control)
        for number, value in enumerate(debugreg):
            debug.arch.debugreg[number] = value
        self.ioctl(ioctls.KVM_SET_GUEST_DEBUG, debug)

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """
        Set the signals that are blocked during KVM_RUN only (KVM_SET_SIGNAL_MASK).

        :param blocked: the signals; the one that kicks use is left out. None: those blocked anyway.
        """
        if blocked is None:
            self.ioctl(ioctls.KVM_SET_SIGNAL_MASK, 0)
            return
        mask = cpu.signal_mask()
        mask.len = 8
        for number in set(blocked) - {kick_signal()}:
            mask.sigset[(number - 1) // 8] |= 1 << (number - 1) % 8
        self.ioctl(ioctls.KVM_SET_SIGNAL_MASK, mask)

    def get_tsc_khz(self) -> int:
        """Return the guest's TSC frequency in kHz (KVM_GET_TSC_KHZ)."""
        return self.ioctl(ioctls.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the guest's TSC frequency in kHz (KVM_SET_TSC_KHZ)."""
        self.ioctl(ioctls.KVM_SET_TSC_KHZ, khz)

    def kvmclock_ctrl(self) -> None:
        """Let the guest know that it was paused (KVM_KVMCLOCK_CTRL)."""
        self.ioctl(ioctls.KVM_KVMCLOCK_CTRL)

    def stats(self) -> dict[str, stats.Stat]:
        """Return KVM's counters for this vCPU (KVM_GET_STATS_FD)."""
        return read_stats(self)
