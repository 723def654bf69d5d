# SPDX-License-Identifier: Apache-2.0
"""
A session
---------

A policy at work on a KVM, for one run. The session fits the plan to this KVM, decides whether C or
Python evaluates it, gives each VM its dispatcher and registers, and reports what happened in the
end. It does not matter which VMM drives the guests.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self

from kvmsr import native
from kvmsr.abi import Cap
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Sink
from kvmsr.dispatch.state import MAX_SHADOWS
from kvmsr.errors import PolicyError
from kvmsr.kvm import Kvm, Vcpu, Vm
from kvmsr.kvm.cpuid import CpuidEntry
from kvmsr.native.block import Block
from kvmsr.native.summary import native_latencies, native_summary
from kvmsr.native.table import Names
from kvmsr.native.vm import NativeVm
from kvmsr.policy import Policy
from kvmsr.policy.plan import Plan
from kvmsr.session.change import OWN, Change
from kvmsr.session.facts import VmFacts, likely_cpu, with_cpu
from kvmsr.session.fitting import fitting_plan, install, plan_for
from kvmsr.session.guests import Guests, OwnVm, Shared
from kvmsr.session.hostmsr import HostDevices
from kvmsr.session.in_force import InForce, refused_note
from kvmsr.session.log import RunLog
from kvmsr.session.result import End, RunResult, VmReport
from kvmsr.session.state import State
from kvmsr.session.succession import Succession
from kvmsr.session.vcpu import GuestVcpu, InUse, NativeVcpu, PythonVcpu, Stop, TakesAccesses
from kvmsr.session.where import recorded, with_where
from kvmsr.trace import Latencies, Summary, TraceOptions

__all__ = ("Session",)


class Session:
    """
    A policy at work.

    :param policy: decides MSR accesses.
    :param kvm: the KVM that runs the guests.
    :param vcpu: a vCPU to find out which MSRs KVM knows; by default one of a temporary VM.
    :param ignore_msrs: whether the host swallows accesses to unknown MSRs; None: find out.
    :param log: receives the accesses that the policy logs.
    :param vcpus: number of vCPU records in the shared memory.
    :param trace: how to record the run; by default it is not recorded.
    :param timed: whether to count latencies.
    :param use_native: let C evaluate the policy on the host's KVM, if the core was built.
    :param attached: the guests are another VMM's, so that C does on any KVM.
    :ivar shared: the memory that C works on; None if Python evaluates the policy.
    :ivar restored: whether a state has been restored.
    :ivar python_vcpus: the vCPUs whose accesses Python answers, each with its VM's number.
    :raises CapabilityError: if this KVM lacks what policies need.
    :raises HostError: if the host lacks what this policy needs.
    :raises PolicyError: if the policy does not fit this KVM.
    """

    def __init__(
        self,
        policy: Policy,
        kvm: Kvm,
        *,
        vcpu: Vcpu | None = None,
        ignore_msrs: bool | None = None,
        log: Sink | None = None,
        vcpus: int = 1,
        trace: TraceOptions | None = None,
        timed: bool = False,
        use_native: bool = True,
        attached: bool = False,
    ) -> None:
        kvm.require(Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)
        self._kvm = kvm
        self._ignore_msrs = ignore_msrs
        self._log = None if log is None else RunLog(log)
        self.python_vcpus: list[tuple[int, PythonVcpu]] = []
        self._timed, self._latencies = timed, list[Latencies]()
        self._changing = threading.Lock()
        self._devices = HostDevices()
        self.shared: Shared | None = None
        self.restored = False
        plan = (
            plan_for(policy, kvm, ignore_msrs)
            if vcpu is None
            else fitting_plan(policy, kvm, vcpu, ignore_msrs)
        )
        in_c = attached or (use_native and isinstance(kvm.backend, HostBackend))
        if in_c and native.available():
            self.shared = Shared(Block(vcpus), Names())
            self.shared.block.tables.timed = timed
        self._guests = Guests(self.shared, partial(likely_cpu, kvm))
        self._recording, self._trace = None, trace
        if trace is not None:
            from kvmsr.session.recording import Recording  # numpy takes 0.1 s to import

            self._recording = Recording(trace, self.shared)
        try:
            self._policies = Succession(self._in_force(plan, 0))
            self._policies.now.begin()
        except BaseException:
            self.close()
            raise

    def _in_force(self, plan: Plan, serial: int) -> InForce:
        host = self._devices.for_policy(plan.policy)
        return InForce(plan, serial, self._guests, host, self._log)

    @property
    def backend(self) -> str:
        """Return the name of the backend."""
        return self._kvm.backend.name

    @property
    def since(self) -> float:
        """Return when the policy in force came into force, in seconds since the epoch."""
        return self._policies.since

    @property
    def replacements(self) -> int:
        """Return how often the policy was replaced."""
        return self._policies.replacements

    def vcpu_counts(self) -> dict[int, int]:
        """Return the number of vCPUs of each VM, by the VM's number."""
        return self._guests.vcpu_counts()

    @property
    def plan(self) -> Plan:
        """Return the plan of the policy in force."""
        return self._policies.now.plan

    # Guests of kvmsr's own machine

    def add_vm(
        self, vm: Vm, vcpus: Sequence[Vcpu], facts: VmFacts, stop: Callable[[Vcpu], Stop]
    ) -> list[GuestVcpu]:
        """
        Put a VM under the policy, and return a runner for each of its vCPUs.

        :param vm: the VM.
        :param vcpus: the VM's vCPUs.
        :param facts: what the policy needs to know about the VM.
        :param stop: called with a vCPU; returns the function to call with the access at which the
            policy stops the run.
        :raises PolicyError: if a model cannot be set up for this VM.
        """
        number = self._guests.add(with_cpu(with_where(facts, vm, vcpus), vcpus[0]))
        now = self._policies.now
        in_use = InUse(now.dispatcher(number))
        install(self.plan, vm)
        self._guests.own.append(OwnVm(number, vm, in_use))
        backend = self._kvm.backend
        if self.shared is not None and isinstance(backend, HostBackend):

            def side(serial: int) -> NativeVm | None:
                policy = self.policy_of(serial)
                return None if policy is None else policy.native(number)

            native = now.native(number)
            return [NativeVcpu(vcpu, vm, backend, native, side, stop(vcpu)) for vcpu in vcpus]
        trace, takers = self._trace, self._takers
        runners = [
            PythonVcpu(
                vcpu, in_use, stop(vcpu), takers(number, vcpu, in_use), recorded(trace, vcpu, vm)
            )
            for vcpu in vcpus
        ]
        self.python_vcpus += [(number, runner) for runner in runners]
        return list[GuestVcpu](runners)

    def _takers(self, vm: int, vcpu: Vcpu, in_use: InUse) -> list[TakesAccesses]:
        """Return what wants to have each access of a vCPU that Python answers."""
        takers: list[TakesAccesses] = []
        if self._timed:
            self._latencies.append(Latencies())
            takers.append(self._latencies[-1])
        if self._recording is not None:
            takers.append(self._recording.add_vcpu(vm, vcpu, lambda: in_use.dispatcher.elapsed()))
        return takers

    # Guests of another VMM

    def check(self) -> None:
        """
        Check that the policy's models can be set up, before there is a VM.

        :raises PolicyError: if a model cannot be set up.
        """
        self._policies.now.check()

    def policy_of(self, serial: int) -> InForce | None:
        """Return the policy with number *serial* in this run; None if it was replaced long ago."""
        return self._policies.of(serial)

    @property
    def failure_count(self) -> int:
        """Return the number of handlers' failures so far."""
        return self._policies.failure_count

    @property
    def dropped_events(self) -> int:
        """Return the number of accesses that came too fast for the trace so far."""
        return 0 if self._recording is None else self._recording.dropped

    # Change and state

    def replace(self, policy: Policy, change: Change = OWN) -> list[str]:
        """
        Replace the policy in force while guests run, and return warnings about the new one.

        Registers keep their values, and so do models that both policies have.

        :raises PolicyError: if *policy* does not fit this KVM. Nothing has changed then.
        """
        with self._changing:
            plan = plan_for(policy, self._kvm, self._ignore_msrs)
            new, warnings = self._put_in_force(plan, change)
            self._policies.follow(new)
            return warnings

    def undo(self, change: Change = OWN) -> list[str]:
        """
        Return to the policy before the one in force, as :meth:`replace` does.

        Registers and models keep their values; models of that policy alone have those that they
        had when it was replaced.

        :raises UsageError: if there is no policy to return to.
        """
        with self._changing:
            again, warnings = self._put_in_force(self._policies.previous().plan, change)
            self._policies.return_to(again)
            return warnings

    def _put_in_force(self, plan: Plan, change: Change) -> tuple[InForce, list[str]]:
        policies = self._policies
        old = policies.now
        new = self._in_force(plan, policies.next_serial())
        new.check()
        new.get_ready(old)
        policies.expect(new)
        new.compile()
        change.announce(plan.policy)
        try:
            warnings = new.begin()
            change.installed()
        except BaseException:
            new.give_back()
            old.install()
            policies.refuse(new)
            change.announce(old.plan.policy)
            raise
        new.settle()
        return new, [*plan.warnings, *warnings]

    def state(self) -> State:
        """Return the state of all VMs' registers."""
        with self._changing:
            return self._policies.now.state()

    def restore(self, state: State, file: str = "the state") -> None:
        """
        Restore a state returned by :meth:`state`.

        :param file: what messages call the state.
        :raises PolicyError: if it was saved under another policy. Nothing has changed then.
        """
        with self._changing:
            before = self._policies.now.state()
            try:
                self._guests.refuse_unless_fits(state)
                self._policies.now.restore(state)
            except PolicyError as error:
                with suppress(PolicyError):
                    self._policies.now.restore(before)
                saved = f", saved under {state.policy}" if state.policy else ""
                raise PolicyError(f"{file}{saved}: {error}") from None
            self.restored = True

    def reset(self) -> None:
        """Reset all VMs' registers."""
        with self._changing:
            self._policies.now.reset()

    # The trace

    def begin_recording(
        self,
        command: str,
        image: str,
        *,
        cpuid: Iterable[CpuidEntry] = (),
        log: Callable[[Any, tuple[int, ...]], None] | None = None,
    ) -> bool:
        """
        Begin to record, if the run is to be recorded. Return whether it is.

        :param command: ``run`` or ``exec``.
        :param image: the image or command that is run, for people.
        :param cpuid: the guest's CPUID, if it is known.
        :param log: called with each event that a rule wants logged, a ``struct kvmsr_event``, and
            its callers, if another VMM runs the guests.
        :raises TraceError: if the trace cannot be written.
        """
        if self._recording is None:
            return False
        self._recording.begin(self.plan, self.backend, command, image, cpuid, log)
        return True

    def end_recording(self) -> None:
        """Write the rest of the trace. Call it when no vCPU runs any more."""
        if self._recording is not None:
            self._recording.end()

    # The end

    def summary(self) -> Summary:
        """Return the summary of all accesses so far."""
        parts = [vcpu.summary for _, vcpu in self.python_vcpus]
        if self.shared is not None:
            parts.append(native_summary(self.shared.block, self.shared.names))
        return Summary.merged(parts)

    def latencies(self) -> Latencies:
        """Return how long accesses took so far, if the session is timed."""
        total = Latencies() if self.shared is None else native_latencies(self.shared.block)
        for part in self._latencies:
            total.update(part)
        return total

    def result(
        self,
        image: str,
        end: End,
        wall_s: float,
        *,
        notes: Sequence[str] = (),
        losses: Sequence[str] = (),
        vms: Sequence[VmReport] = (),
    ) -> RunResult:
        """
        Return the result of the run.

        :param image: the image or command that was run, for people.
        :param end: how the run ended.
        :param wall_s: how long the run took, in seconds.
        :param notes: further lines that the user should read.
        :param losses: lines about what was not under the policy.
        :param vms: the VMs, if another VMM ran them.
        """
        with self._changing:  # the guest may end because of a policy that is just coming into force
            plan, found = self.plan, self._policies.notes
        if self.shared is not None:
            found += [
                refused_note(vm.refused, min(vm.n_shadows, MAX_SHADOWS))
                for _, vm in self.shared.block.vms() if vm.refused
            ]  # fmt: skip
        if self._log is not None:
            found += self._log.notes
        if self._recording is not None:
            found += self._recording.notes
        return RunResult(
            self.backend,
            image,
            plan.policy.source or plan.policy.name,
            end,
            self.summary(),
            wall_s,
            tuple(self._policies.failures),
            self._policies.failure_count,
            tuple(dict.fromkeys((*found, *notes))),
            tuple(dict.fromkeys(losses)),
            tuple(vms),
            plan.not_observed,
        )

    def close(self) -> None:
        """Free the shared memory and close the host's devices and the trace."""
        self.end_recording()
        self._devices.close()
        if self.shared is not None:
            self.shared.block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
