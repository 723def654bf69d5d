# SPDX-License-Identifier: Apache-2.0
"""
Running a vCPU under a policy
-----------------------------

Whoever drives a guest runs its vCPUs through these. They answer every MSR access; other exits are
the caller's.

1. The guest executes RDMSR or WRMSR, KVM gives it up, and KVM_RUN returns.
2. The exit becomes an access, and the dispatcher returns an outcome.
3. Where that says so, KVM itself is asked, as the host may. If KVM refuses, the access goes on with
   the reason that it then has.
4. The exit is answered and the access counted. It takes effect with the next KVM_RUN.

Where C evaluates, it does all of that inside one call (native/c/access.c), and comes back for what
takes Python.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from kvmsr.abi import MsrExitReason
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Dispatcher, Outcome, Verdict
from kvmsr.errors import MsrListError
from kvmsr.kvm import Vcpu
from kvmsr.kvm.exits import Exit, Rdmsr, Wrmsr
from kvmsr.native.loop import NativeLoop
from kvmsr.native.vm import NativeVm
from kvmsr.policy import Access, Op, Reason
from kvmsr.session.fitting import host_reads
from kvmsr.trace import Summary

__all__ = ("GuestVcpu", "NativeVcpu", "PythonVcpu", "Serve", "Stop")

_READ, _WRITE, _FILTER = Op.READ, Op.WRITE, Reason.FILTER
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT
_REASONS: Final = {
    int(MsrExitReason.UNKNOWN): Reason.UNKNOWN,
    int(MsrExitReason.INVALID): Reason.INVALID,
    int(MsrExitReason.FILTER): Reason.FILTER,
}

# Half the price of the constructor that a NamedTuple gets; once an access.
_access: Callable[..., Access] = tuple.__new__

Serve = Callable[[Exit], bool]
"""Answers an exit that is no MSR access, and returns whether it has."""

Stop = Callable[[Access, Outcome], None]
"""Takes the access at which the policy stops the run."""


class GuestVcpu(Protocol):
    """A vCPU whose MSR accesses are answered."""

    @property
    def accesses(self) -> int:
        """Return how many accesses have been answered."""

    def run(self, serve: Serve) -> Exit:
        """
        Run the guest until an exit that neither a policy answers nor *serve*.

        :raises IoctlError: if KVM refuses to run the vCPU.
        """

    def close(self) -> None:
        """Let go of the vCPU, which is about to be closed."""


class NativeVcpu:
    """A vCPU whose accesses C answers, and Python what C cannot."""

    def __init__(self, vcpu: Vcpu, backend: HostBackend, vm: NativeVm, stop: Stop) -> None:
        self._vcpu = vcpu
        self._loop = NativeLoop(vm, vcpu.id, vcpu.fd, vcpu.page, backend.loop, stop)

    @property
    def accesses(self) -> int:
        """Return how many accesses have been answered."""
        return self._loop.exits

    def run(self, serve: Serve) -> Exit:
        """Run the guest; see :class:`GuestVcpu`."""
        return self._vcpu.run(serve, by=self._loop)

    def close(self) -> None:
        """Let go of the vCPU's page."""
        self._loop.close()


class PythonVcpu:
    """
    A vCPU whose accesses a dispatcher answers.

    :ivar summary: what it asked for, and what it was answered.
    """

    def __init__(self, vcpu: Vcpu, dispatcher: Dispatcher, stop: Stop) -> None:
        # An answered access is still pending until the vCPU goes on: RIP is at the instruction.
        self.summary = Summary(rip=lambda: vcpu.get_regs().rip)
        self.accesses = 0
        self._vcpu = vcpu
        self._dispatcher = dispatcher
        self._stop = stop
        self._handle = dispatcher.handle
        self._record = self.summary.record
        self._swallows = dispatcher.plan.kernel.ignore_msrs

    def run(self, serve: Serve) -> Exit:
        """Run the guest; see :class:`GuestVcpu`."""
        return self._vcpu.run(partial(self._serve, serve))

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def _serve(self, serve: Serve, exit_: Exit) -> bool:
        kind = type(exit_)
        if kind is Rdmsr:
            self._rdmsr(exit_)  # type: ignore[arg-type]
        elif kind is Wrmsr:
            self._wrmsr(exit_)  # type: ignore[arg-type]
        else:
            return serve(exit_)
        self.accesses += 1
        return True

    def _rdmsr(self, exit_: Rdmsr) -> None:
        access = _access(Access, (self._vcpu.id, _READ, exit_.index, 0, _REASONS[exit_.reason]))
        if self._swallows:
            access = self._dispatcher.restated(access)
        outcome = self._handle(access)
        verdict = outcome.verdict
        if verdict is _VALUE:
            exit_.answer(outcome.value)
        elif verdict is _FAULT:
            exit_.fault()
        else:
            access, outcome = self._special(access, exit_, outcome)
        self._record(access, outcome)

    def _wrmsr(self, exit_: Wrmsr) -> None:
        access = _access(
            Access, (self._vcpu.id, _WRITE, exit_.index, exit_.value, _REASONS[exit_.reason])
        )
        if self._swallows:
            access = self._dispatcher.restated(access)
        outcome = self._handle(access)
        verdict = outcome.verdict
        if verdict is _DONE:
            exit_.done()
        elif verdict is _FAULT:
            exit_.fault()
        else:
            access, outcome = self._special(access, exit_, outcome)
        self._record(access, outcome)

    def _special(
        self, access: Access, exit_: Rdmsr | Wrmsr, outcome: Outcome
    ) -> tuple[Access, Outcome]:
        """Do what takes more than an answer: ask KVM itself, or stop the run."""
        if outcome.verdict is Verdict.KERNEL:
            access, outcome = self._ask_kvm(access, outcome)
        if outcome.verdict is Verdict.STOP:
            self._stop(access, outcome)
            exit_.fault()  # the guest never sees this: but an exit must have an answer
        elif outcome.verdict is _FAULT:
            exit_.fault()
        elif isinstance(exit_, Rdmsr):
            exit_.answer(outcome.value)
        else:
            exit_.done()
        return access, outcome

    def _ask_kvm(self, access: Access, outcome: Outcome) -> tuple[Access, Outcome]:
        try:
            if access.op == _READ:
                value = self._vcpu.get_msrs([access.index])[access.index]
                return access, outcome._replace(verdict=_VALUE, value=value)
            self._vcpu.set_msrs({access.index: access.value})
            return access, outcome._replace(verdict=_DONE)
        except MsrListError:
            reason = Reason.UNKNOWN
            if access.op == _WRITE and host_reads(self._vcpu, access.index):
                reason = Reason.INVALID  # KVM knows it, so it is the value
            access = access._replace(reason=reason)
            return access, self._dispatcher.refused(access, outcome)
