# SPDX-License-Identifier: Apache-2.0
"""
Running a vCPU under a policy
-----------------------------

A driver of guests runs its vCPUs through these classes. They answer every MSR access, and leave all
other exits to the driver. An access goes this way:

1. The guest executes RDMSR or WRMSR, KVM gives the access up, and KVM_RUN returns.
2. The exit becomes an Access, and the dispatcher returns its Outcome.
3. If the outcome is to ask KVM itself, KVM_GET_MSRS or KVM_SET_MSRS does that, with the host's
   rights. KVM may refuse, for a reason of its own. The access then gets that reason, for handlers,
   log and summary, and the dispatcher decides once more.
4. The exit is answered, and the access is counted. An answer only fills in the kvm_run page: KVM
   completes the instruction at the next KVM_RUN, and until then RIP still points to it.

If C evaluates the policy, it does all of this within one call (native/c/access.c), and returns only
when it needs Python.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic_ns
from typing import Final, Protocol

from kvmsr.abi import Cap, MsrExitReason, SyncReg
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Dispatcher, Outcome, Verdict
from kvmsr.errors import MsrListError
from kvmsr.kvm import Vcpu, Vm
from kvmsr.kvm.exits import Exit, Rdmsr, Wrmsr
from kvmsr.msr.as_host import never_unknown
from kvmsr.native.loop import NativeLoop, guest_memory
from kvmsr.native.vm import NativeVm
from kvmsr.policy import Access, Op, Reason, Where
from kvmsr.policy.plan import Plan
from kvmsr.session.fitting import host_reads
from kvmsr.trace import Summary

__all__ = ("GuestVcpu", "InUse", "NativeVcpu", "PythonVcpu", "Serve", "Stop", "TakesAccesses")

_READ, _WRITE, _FILTER = Op.READ, Op.WRITE, Reason.FILTER
_SYNCED: Final = SyncReg.REGS | SyncReg.SREGS
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT
_REASONS: Final = {
    int(MsrExitReason.UNKNOWN): Reason.UNKNOWN,
    int(MsrExitReason.INVALID): Reason.INVALID,
    int(MsrExitReason.FILTER): Reason.FILTER,
}

# Costs half as much as the constructor that NamedTuple generates; used for every access.
_access: Callable[..., Access] = tuple.__new__

Serve = Callable[[Exit], bool]
"""Answers an exit that is not an MSR access, and returns whether it has."""

Stop = Callable[[Access, Outcome], None]
"""Called with the access at which the policy stops the run."""


class InUse:
    """
    The dispatcher that answers a VM's accesses. Assigning another one replaces the policy of all
    vCPUs at once. Each access is answered by one dispatcher from beginning to end.

    :ivar dispatcher: the dispatcher.
    """

    __slots__ = ("dispatcher",)

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher


class GuestVcpu(Protocol):
    """A vCPU whose MSR accesses are answered under a policy."""

    @property
    def accesses(self) -> int:
        """Return the number of accesses answered so far."""

    def run(self, serve: Serve) -> Exit:
        """
        Run the guest until an exit that neither the policy nor *serve* answers.

        :raises IoctlError: if KVM refuses to run the vCPU.
        """

    def close(self) -> None:
        """Release the vCPU, which is about to be closed."""


class TakesAccesses(Protocol):
    """Takes each access that was answered."""

    def add(self, access: Access, outcome: Outcome, began_ns: int) -> None:
        """Add an access; *began_ns*, of CLOCK_MONOTONIC, is when KVM handed it over."""


class NativeVcpu:
    """
    A vCPU whose accesses C answers, with Python's help if it needs it.

    :param handle: its VM.
    :param vm: the Python side of its VM.
    :param side: returns the Python side of the policy with the given number; None if it was
        replaced long ago.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        handle: Vm,
        backend: HostBackend,
        vm: NativeVm,
        side: Callable[[int], NativeVm | None],
        stop: Stop,
    ) -> None:
        self._vcpu = vcpu
        self._loop = NativeLoop(
            vm, side, vcpu.id, vcpu.fd, vcpu.page, backend.loop, stop, guest_memory(handle.slots()),
            can_sync=handle.check_extension(Cap.SYNC_REGS) & _SYNCED == _SYNCED,
        )  # fmt: skip

    @property
    def accesses(self) -> int:
        """Return the number of accesses answered so far."""
        return self._loop.exits

    def run(self, serve: Serve) -> Exit:
        """Run the guest; see :class:`GuestVcpu`."""
        return self._vcpu.run(serve, by=self._loop)

    def close(self) -> None:
        """Release the vCPU's page."""
        self._loop.close()


class PythonVcpu:
    """
    A vCPU whose accesses a dispatcher answers.

    :param in_use: has the dispatcher.
    :param takers: what wants to have each access, beside the summary.
    :param locate: finds out where the guest is, if accesses are to have that.
    :ivar summary: the summary of its accesses.
    :ivar accesses: number of accesses answered so far.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        in_use: InUse,
        stop: Stop,
        takers: Sequence[TakesAccesses] = (),
        locate: Callable[[], Where] | None = None,
    ) -> None:
        # RIP still points to the instruction when the access is counted (step 4 above).
        self.summary = Summary(rip=lambda: vcpu.get_regs().rip)
        self.accesses = 0
        self._vcpu = vcpu
        self._in_use = in_use
        self._stop = stop
        self._locate = locate
        self._began_ns = 0
        self._always = takers
        self.give_also_to(None)
        self._swallows = in_use.dispatcher.plan.kernel.ignore_msrs

    def give_also_to(self, taker: TakesAccesses | None) -> None:
        """From now on, give each access to *taker*, too. Any thread may call it."""
        takers = [*self._always, *([] if taker is None else [taker])]
        self._takers = [taker.add for taker in takers]
        self._record = self._record_more if takers else self.summary.record

    def run(self, serve: Serve) -> Exit:
        """Run the guest; see :class:`GuestVcpu`."""
        return self._vcpu.run(partial(self._serve, serve))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _serve(self, serve: Serve, exit_: Exit) -> bool:
        kind = type(exit_)
        self._began_ns = monotonic_ns()
        if kind is Rdmsr:
            self._rdmsr(exit_)  # type: ignore[arg-type]
        elif kind is Wrmsr:
            self._wrmsr(exit_)  # type: ignore[arg-type]
        else:
            return serve(exit_)
        self.accesses += 1
        return True

    def _located(self, locate: Callable[[], Where]) -> Where:
        where = locate()
        self._began_ns = monotonic_ns()  # looking for callers is no part of the access
        return where

    def _record_more(self, access: Access, outcome: Outcome) -> None:
        self.summary.record(access, outcome)
        for add in self._takers:
            add(access, outcome, self._began_ns)

    def _rdmsr(self, exit_: Rdmsr) -> None:
        where = None if self._locate is None else self._located(self._locate)
        access = _access(
            Access, (self._vcpu.id, _READ, exit_.index, 0, _REASONS[exit_.reason], where)
        )
        dispatcher = self._in_use.dispatcher
        if self._swallows:
            access = dispatcher.restated(access)
        outcome = dispatcher.handle(access)
        verdict = outcome.verdict
        if verdict is _VALUE:
            exit_.answer(outcome.value)
        elif verdict is _FAULT:
            exit_.fault()
        else:
            access, outcome = self._special(dispatcher, access, exit_, outcome)
        self._record(access, outcome)

    def _wrmsr(self, exit_: Wrmsr) -> None:
        where = None if self._locate is None else self._located(self._locate)
        access = _access(
            Access, (self._vcpu.id, _WRITE, exit_.index, exit_.value, _REASONS[exit_.reason], where)
        )
        dispatcher = self._in_use.dispatcher
        if self._swallows:
            access = dispatcher.restated(access)
        outcome = dispatcher.handle(access)
        verdict = outcome.verdict
        if verdict is _DONE:
            exit_.done()
        elif verdict is _FAULT:
            exit_.fault()
        else:
            access, outcome = self._special(dispatcher, access, exit_, outcome)
        self._record(access, outcome)

    def _special(
        self, dispatcher: Dispatcher, access: Access, exit_: Rdmsr | Wrmsr, outcome: Outcome
    ) -> tuple[Access, Outcome]:
        """Handle an outcome that is not simply an answer: ask KVM itself, or stop the run."""
        if outcome.verdict is Verdict.KERNEL:
            access, outcome = self._ask_kvm(dispatcher, access, outcome)
        if outcome.verdict is Verdict.STOP:
            self._stop(access, outcome)
            exit_.fault()  # an exit must be answered; the guest never sees this
        elif outcome.verdict is _FAULT:
            exit_.fault()
        elif isinstance(exit_, Rdmsr):
            exit_.answer(outcome.value)
        else:
            exit_.done()
        return access, outcome

    def _ask_kvm(
        self, dispatcher: Dispatcher, access: Access, outcome: Outcome
    ) -> tuple[Access, Outcome]:
        try:
            if access.op == _READ:
                value = self._vcpu.get_msrs([access.index])[access.index]
                outcome = outcome._replace(verdict=_VALUE, value=value)
            else:
                self._vcpu.set_msrs({access.index: access.value})
                outcome = outcome._replace(verdict=_DONE)
        except MsrListError:
            access = access._replace(reason=self._why_refused(dispatcher.plan, access))
            return access, dispatcher.refused(access, outcome)
        dispatcher.passed(access, outcome)
        return access, outcome

    def _why_refused(self, plan: Plan, access: Access) -> Reason:
        """Return why KVM would have refused the guest an access that it refuses the host."""
        if any(first <= access.index <= last for first, last in never_unknown()):
            return Reason.INVALID
        handles = access.op == _WRITE and plan.segment(access.op, access.index).known
        # If KVM can read the MSR, it refused the value.
        invalid = handles and host_reads(self._vcpu, access.index)
        return Reason.INVALID if invalid else Reason.UNKNOWN
