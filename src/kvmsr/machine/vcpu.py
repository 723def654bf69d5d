# SPDX-License-Identifier: Apache-2.0
"""
vCPU threads
------------

One thread for each vCPU: it enters the guest, and answers what makes the guest come out.

A thread ends by itself only if the run is over: whoever ends the run sets ``Runner.over`` first and
then kicks each vCPU, so a thread either sees the flag before it enters the guest, or is kicked out
of it. Nothing on the way of an MSR access takes a lock.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from kvmsr.abi import Chip, ExitReason, Mp, MsrExitReason
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Dispatcher, Outcome, Verdict
from kvmsr.errors import KvmsrError, MsrListError
from kvmsr.kvm import Vcpu, Vm
from kvmsr.kvm.exits import (
    EmulationFailure,
    Exit,
    FailEntry,
    Hlt,
    Internal,
    Interrupted,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Other,
    Rdmsr,
    Shutdown,
    SystemEvent,
    Wrmsr,
)
from kvmsr.machine.board import Board
from kvmsr.machine.diagnose import explain_emulation_failure, explain_internal, where
from kvmsr.machine.native import NativeLoop
from kvmsr.machine.result import CRASHED, FAILED, INTERRUPTED, End, EndKind
from kvmsr.native.questions import NativeDispatcher
from kvmsr.policy import Access, Op, Reason
from kvmsr.trace import Summary

__all__ = ("Runner", "VcpuThread", "host_reads")

_log = logging.getLogger(__name__)

_INTERRUPT_FLAG: Final = 1 << 9
_LVT0: Final = 0x350
_MASKED_OR_MODE: Final = 1 << 16 | 7 << 8
_MODE_NMI: Final = 4 << 8

# On the way of every access: looking a member up in its enumeration costs more than using it.
_READ, _WRITE = Op.READ, Op.WRITE
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT
_REASONS: Final = {
    int(MsrExitReason.UNKNOWN): Reason.UNKNOWN,
    int(MsrExitReason.INVAL): Reason.INVALID,
    int(MsrExitReason.FILTER): Reason.FILTER,
}

_SERVED: Final = (IoOut, IoIn, MmioRead, MmioWrite)
"""What the board answers."""


def host_reads(vcpu: Vcpu, index: int) -> bool:
    """Tell whether KVM knows MSR *index*: whether the host can read it."""
    try:
        vcpu.get_msrs([index])
    except MsrListError:
        return False
    return True


class Runner(Protocol):
    """What a vCPU's thread needs of its machine."""

    vm: Vm
    board: Board
    dispatcher: Dispatcher
    over: bool

    def end(self, end: End) -> None:
        """End the run, if it has not ended yet; from any thread."""


class VcpuThread(threading.Thread):
    """
    A vCPU and the thread that runs it.

    :ivar vcpu: the vCPU.
    :ivar summary: what it asked for, and what it was told.
    :ivar asleep: when last kicked, it had halted with interrupts off and no device was to send
        NMIs, or waited for SIPI: only another vCPU can wake it.
    """

    def __init__(self, runner: Runner, vcpu: Vcpu) -> None:
        super().__init__(name=f"vcpu{vcpu.id}", daemon=True)
        self.vcpu = vcpu
        # An answered access is still pending until the vCPU goes on: RIP is at the instruction.
        self.summary = Summary(rip=lambda: vcpu.get_regs().rip)
        self._exits = 0
        self._native: NativeLoop | None = None
        self.asleep = False
        self._runner = runner
        self._handle = runner.dispatcher.handle
        self._record = self.summary.record

    @property
    def exits(self) -> int:
        """Return how often it came out of the guest, for whoever wonders whether it still does."""
        return self._exits + (self._native.exits if self._native else 0)

    def use(self, native: NativeDispatcher, backend: HostBackend) -> None:
        """Leave the accesses to C, which asks *native* where it needs Python."""
        self._native = NativeLoop(native, backend, self.vcpu, self._stop_at)
        self.vcpu.run_by(self._native)

    def let_go(self) -> None:
        """Let go of the vCPU, which is to be closed."""
        if self._native is not None:
            self._native.close()

    def run(self) -> None:
        """Run the guest until the run is over."""
        try:
            self._loop()
        except KvmsrError as error:
            self._end(EndKind.ERROR, error.exit_status, str(error))
        except KeyboardInterrupt:  # a handler's: signals reach the main thread alone
            self._end(EndKind.STOP, INTERRUPTED, "interrupted by a handler")
        except BaseException as error:
            # Whatever it is, the other threads must not wait for this one for ever.
            _log.debug("vCPU %d", self.vcpu.id, exc_info=True)
            what = f"vCPU {self.vcpu.id}: {type(error).__name__}: {error}"
            self._end(EndKind.ERROR, 1, f"kvmsr itself failed, please report it: {what}")

    def _loop(self) -> None:
        runner, vcpu = self._runner, self.vcpu
        while not runner.over:
            exit_ = vcpu.run(self._serve)
            if type(exit_) is Interrupted:
                self._look_whether_asleep()
            else:
                self._rare(exit_)
                self._exits += 1

    def _serve(self, exit_: Exit) -> bool:
        """Answer an exit that the guest waits for; False: it is another."""
        kind = type(exit_)
        if kind is Rdmsr:
            self._rdmsr(exit_)  # type: ignore[arg-type]
        elif kind is Wrmsr:
            self._wrmsr(exit_)  # type: ignore[arg-type]
        elif kind in _SERVED:
            try:
                self._runner.board.serve(exit_)  # type: ignore[arg-type]
            except OSError as error:
                what = f"the guest's output goes nowhere: {error.strerror}"
                self._end(EndKind.ERROR, 1, what)
        else:
            return False
        self._exits += 1
        return True

    # MSR accesses

    def _rdmsr(self, exit_: Rdmsr) -> None:
        access = _access(Access, (self.vcpu.id, _READ, exit_.index, 0, _REASONS[exit_.reason]))
        outcome = self._handle(access)
        verdict = outcome.verdict
        if verdict is _VALUE:
            exit_.answer(outcome.value)
        elif verdict is _FAULT:
            exit_.fault()
        else:
            outcome = self._special(access, exit_, outcome)
        self._record(access, outcome)

    def _wrmsr(self, exit_: Wrmsr) -> None:
        access = _access(
            Access, (self.vcpu.id, _WRITE, exit_.index, exit_.value, _REASONS[exit_.reason])
        )
        outcome = self._handle(access)
        verdict = outcome.verdict
        if verdict is _DONE:
            exit_.done()
        elif verdict is _FAULT:
            exit_.fault()
        else:
            outcome = self._special(access, exit_, outcome)
        self._record(access, outcome)

    def _special(self, access: Access, exit_: Rdmsr | Wrmsr, outcome: Outcome) -> Outcome:
        """Do what takes more than an answer: ask KVM itself, or stop the run."""
        if outcome.verdict is Verdict.KERNEL:
            outcome = self._ask_kvm(access, outcome)
        if outcome.verdict is Verdict.STOP:
            self._stop_at(access, outcome)
            exit_.fault()  # it never sees this: but an exit must have an answer
        elif outcome.verdict is Verdict.FAULT:
            exit_.fault()
        elif isinstance(exit_, Rdmsr):
            exit_.answer(outcome.value)
        else:
            exit_.done()
        return outcome

    def _stop_at(self, access: Access, outcome: Outcome) -> None:
        rip = where(self._runner.vm, self.vcpu).rip
        detail = f"{outcome.rule} stops the run at a {access}, RIP {rip:#x}"
        self._end(EndKind.STOP, FAILED, detail)

    def _ask_kvm(self, access: Access, outcome: Outcome) -> Outcome:
        try:
            if access.op == Op.READ:
                value = self.vcpu.get_msrs([access.index])[access.index]
                return outcome._replace(verdict=Verdict.VALUE, value=value)
            self.vcpu.set_msrs({access.index: access.value})
            return outcome._replace(verdict=Verdict.DONE)
        except MsrListError:
            reason = Reason.UNKNOWN
            if access.op == Op.WRITE and host_reads(self.vcpu, access.index):
                reason = Reason.INVALID  # KVM knows it, so it is the value
            return self._runner.dispatcher.refused(access, outcome, reason)

    # Everything else

    def _rare(self, exit_: Exit) -> None:
        if isinstance(exit_, Shutdown):
            self._end(EndKind.SHUTDOWN, CRASHED, "triple fault")
        elif isinstance(exit_, EmulationFailure):
            detail = explain_emulation_failure(self._runner.vm, self.vcpu, exit_)
            self._end(EndKind.EMULATION_FAILURE, CRASHED, detail)
        elif isinstance(exit_, (Internal, FailEntry)):
            detail = explain_internal(self._runner.vm, self.vcpu, exit_)
            self._end(EndKind.ERROR, CRASHED, detail)
        elif isinstance(exit_, Hlt):
            self._end(EndKind.HALT, 0, "the guest halted")
        elif isinstance(exit_, SystemEvent):
            self._end(EndKind.SHUTDOWN, 0, f"KVM system event {exit_.type}")
        elif isinstance(exit_, Other) and exit_.reason == ExitReason.SET_TPR:
            pass
        else:
            name = exit_.name if isinstance(exit_, Other) else type(exit_).__name__
            self._end(EndKind.ERROR, 1, f"vCPU {self.vcpu.id}: no way to handle {name}")

    def _look_whether_asleep(self) -> None:
        """Find out, after a kick, whether this vCPU sleeps in a way that nothing outside ends."""
        state = self.vcpu.get_mp_state()
        if state is Mp.HALTED:
            masked = not self.vcpu.get_regs().rflags & _INTERRUPT_FLAG
            self.asleep = masked and not self._nmis_may_come()
        else:
            self.asleep = state in (Mp.UNINITIALIZED, Mp.INIT_RECEIVED)

    def _nmis_may_come(self) -> bool:
        """Tell whether a line is wired to NMI, as a watchdog does with the timer's."""
        lint0 = int.from_bytes(bytes(self.vcpu.get_lapic().regs[_LVT0 : _LVT0 + 4]), "little")
        pins = self._runner.vm.get_irqchip(Chip.IOAPIC).chip.ioapic.redirtbl
        return any(entry & _MASKED_OR_MODE == _MODE_NMI for entry in (lint0, *pins))

    def _end(self, kind: EndKind, code: int, detail: str) -> None:
        self._runner.end(End(kind, code, detail))


# Half the price of the constructor that a NamedTuple gets; once an access.
_access: Callable[..., Access] = tuple.__new__
