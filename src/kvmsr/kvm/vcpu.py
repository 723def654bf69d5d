# SPDX-License-Identifier: Apache-2.0
"""
The vCPU handle
---------------

A virtual CPU: its registers, and running it.

*When an operation is complete.* After an exit that the guest waits for (port and memory reads, MSR
accesses) the instruction is not finished: registers show the state before it, and KVM finishes it
first thing in the next KVM_RUN. What waits there is no part of what the other ioctls save, and it
would be done on top of any state written meanwhile. So before saving, resetting or rewriting a
vCPU, call :meth:`Vcpu.complete_pending`.

*No exit is lost.* A signal handler may raise anywhere, also between KVM_RUN and the line that reads
its exit. KVM has answered an MSR access "no error, value 0" by then, and would take the next
KVM_RUN for consent. So ``exit_reason`` is 0 in the page unless it holds an exit that nobody has got
yet, and :meth:`Vcpu.run` looks there first.
"""

import errno
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kvmsr.abi import ExitReason, Mp, SyncReg, Word, buffer, cpu, ioctls, size_of
from kvmsr.abi.run import Run
from kvmsr.backend import kick_signal
from kvmsr.backend.protocol import Backend
from kvmsr.errors import ExitUnansweredError, IoctlError, UsageError
from kvmsr.kvm import cpuid, exits, msrs, stats
from kvmsr.kvm.handle import Handle, read_stats

if TYPE_CHECKING:
    from kvmsr.kvm.exits import Exit, MsrExit

__all__ = ("Vcpu",)

_KVM_RUN: Final = ioctls.KVM_RUN
_RDMSR: Final = int(ExitReason.X86_RDMSR)
_NO_EXIT: Final = (0, int(ExitReason.INTR))
_REASON: Final = Run.exit_reason.offset // 4  # type: ignore[attr-defined]
_rdmsr: Final = exits.rdmsr
_read: Final = exits.read
_INTERRUPTED: Final = exits.Interrupted()


class _Closed:
    """Stands where the kvm_run page was: whoever touches it is told."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError(self._what)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise UsageError(self._what)


class Vcpu(Handle):
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
        super().__init__(backend, fd)
        self.id = vcpu_id
        self._xsave_size = xsave_size
        self._keep = keep  # KVM's VM lives as long as its vCPUs, and so must its memory
        mapping = backend.mmap(fd, mmap_size)
        self._bytes = memoryview(mapping)
        self._words = self._bytes.cast("B").cast("I")  # faster than through the structure
        self._page: Any = Run.from_buffer(mapping)
        self._msr: Any = self._page.exit.msr  # a view, kept because it is on the hot path
        self._unanswered: MsrExit | None = None
        self._kicked = False
        self._completing = False
        self._ioctl = backend.ioctl

    def close(self) -> None:
        """Close the vCPU; an access that waits for an answer is lost."""
        if self.fd < 0:
            return
        self._unanswered = self._keep = None
        self._page = self._msr = _Closed(f"vCPU {self.id} is closed")
        self._words.release()
        self._bytes.release()
        super().close()

    # Running

    def run(self) -> "Exit":
        """
        Run the guest until its next exit (KVM_RUN).

        :raises ExitUnansweredError: if the last MSR exit has no answer yet.
        :raises IoctlError: if KVM refuses to run the vCPU.
        """
        if self._unanswered is not None or self.fd < 0:
            self._refuse()
        words = self._words
        if words[_REASON] in _NO_EXIT:
            words[_REASON] = 0
            try:
                self._ioctl(self.fd, _KVM_RUN)
            except OSError as error:
                return self._interrupted(error)
        exit_ = _rdmsr(self) if words[_REASON] == _RDMSR else _read(self)
        words[_REASON] = 0
        return exit_

    def _interrupted(self, error: OSError) -> exits.Interrupted:
        """KVM_RUN failed: see whether a signal or a kick is why."""
        interrupted = error.errno in (errno.EINTR, errno.EAGAIN)
        if self._words[_REASON] not in _NO_EXIT:
            if interrupted or error.errno is None:
                raise error  # a signal handler's: KVM_RUN itself went well
            self._words[_REASON] = 0
        # EAGAIN: INIT or SIPI has woken a vCPU that waited for it.
        if not interrupted:
            raise IoctlError("KVM_RUN", error.errno or 0, f"vCPU {self.id}") from None
        if not self._completing:
            # A kick that comes between these two lines is not lost: this return is its effect.
            self._kicked = False
            self._page.immediate_exit = 0
        return _INTERRUPTED

    @property
    def unanswered(self) -> "MsrExit | None":
        """The MSR exit that has no answer yet, should an exception have come in its way."""
        if self._unanswered is not None:
            self._words[_REASON] = 0
        return self._unanswered

    def _refuse(self) -> NoReturn:
        if self.fd < 0:
            raise UsageError(f"vCPU {self.id} is closed")
        raise ExitUnansweredError(
            f"vCPU {self.id}: {self._unanswered!r} has no answer yet; call answer(), done() or"
            " fault() on it first"
        )

    def kick(self) -> None:
        """
        Make :meth:`run` return :class:`~kvmsr.kvm.exits.Interrupted` soon; from any thread.

        A closed vCPU takes no notice.
        """
        self._kicked = True
        if self.fd >= 0:
            self.backend.kick(self.fd)

    def complete_pending(self) -> "Exit | None":
        """
        Finish the instruction of the last exit without running any other.

        This is what Linux's api.rst demands before state is saved (see the module's text). KVM_RUN
        is entered with ``immediate_exit`` set: KVM completes the instruction and returns. A #GP
        that the answer asked for is then queued: it shows in :meth:`get_vcpu_events`, belongs to
        the state to save, and is dropped by a :meth:`set_regs` that comes after.

        :return: None; or the exit that completing led to: a single step's
            :class:`~kvmsr.kvm.exits.Debug`, or the next part of a wide memory access.
        :raises ExitUnansweredError: if the last MSR exit has no answer yet.
        """
        page = self._page
        self._completing = True
        page.immediate_exit = 1
        try:
            exit_ = self.run()
        finally:
            # The same byte carries kicks. One that came meanwhile is for the next run(); it sets
            # _kicked first, so looking after clearing misses none.
            page.immediate_exit = 0
            if self._kicked:
                page.immediate_exit = 1
            self._completing = False
        return None if isinstance(exit_, exits.Interrupted) else exit_

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

    # Registers through the kvm_run page

    @property
    def valid_regs(self) -> SyncReg:
        """The register groups that each exit leaves in :attr:`sync_regs`."""
        return SyncReg(self._page.kvm_valid_regs)

    @valid_regs.setter
    def valid_regs(self, groups: SyncReg) -> None:
        self._page.kvm_valid_regs = int(groups)

    @property
    def dirty_regs(self) -> SyncReg:
        """The register groups that the next :meth:`run` takes from :attr:`sync_regs`, once."""
        return SyncReg(self._page.kvm_dirty_regs)

    @dirty_regs.setter
    def dirty_regs(self, groups: SyncReg) -> None:
        self._page.kvm_dirty_regs = int(groups)

    @property
    def sync_regs(self) -> cpu.SyncRegs:
        """The registers in the kvm_run page, in place (KVM_CAP_SYNC_REGS)."""
        regs: cpu.SyncRegs = self._page.s.regs
        return regs

    # Interrupts through the kvm_run page, without an in-kernel irqchip

    @property
    def request_interrupt_window(self) -> bool:
        """Whether :meth:`run` is to return IrqWindowOpen once the guest can take an interrupt."""
        return bool(self._page.request_interrupt_window)

    @request_interrupt_window.setter
    def request_interrupt_window(self, wanted: bool) -> None:
        self._page.request_interrupt_window = bool(wanted)

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether :meth:`interrupt` would be taken at once, as of the last exit."""
        return bool(self._page.ready_for_interrupt_injection)

    @property
    def if_flag(self) -> bool:
        """The guest's RFLAGS.IF, as of the last exit."""
        return bool(self._page.if_flag)

    @property
    def cr8(self) -> int:
        """The guest's CR8, 0 to 15: read after an exit, and taken by the next :meth:`run`."""
        return int(self._page.cr8)

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._page.cr8 = value

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
        """Tell the guest that it was paused (KVM_KVMCLOCK_CTRL)."""
        self.ioctl(ioctls.KVM_KVMCLOCK_CTRL)

    def stats(self) -> dict[str, stats.Stat]:
        """Return KVM's counters for this vCPU (KVM_GET_STATS_FD)."""
        return read_stats(self)
