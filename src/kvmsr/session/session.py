# SPDX-License-Identifier: Apache-2.0
"""
A session
---------

A policy at work on a KVM: made for a run, whoever drives the guests. It fits the plan to this KVM,
decides who evaluates it, gives each VM its dispatcher and registers, and in the end says what
happened.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Self

from kvmsr import native
from kvmsr.abi import Cap
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Sink
from kvmsr.kvm import Kvm, Vcpu, Vm
from kvmsr.native.block import Block
from kvmsr.native.summary import native_summary
from kvmsr.native.table import Names
from kvmsr.policy import Policy
from kvmsr.policy.plan import Plan
from kvmsr.session.facts import VmFacts
from kvmsr.session.fitting import fitting_plan, install, plan_for
from kvmsr.session.in_force import InForce, Shared, refused_note
from kvmsr.session.log import RunLog
from kvmsr.session.result import End, RunResult
from kvmsr.session.state import State
from kvmsr.session.vcpu import GuestVcpu, NativeVcpu, PythonVcpu, Stop
from kvmsr.trace import Summary

__all__ = ("Session",)

_KEPT = 8
"""How many policies that were replaced may still be asked about."""


class Session:
    """
    A policy at work.

    :param policy: what to do at MSR accesses.
    :param kvm: the KVM under which the guests run.
    :param vcpu: is asked which MSRs KVM knows, instead of one of a VM made for that.
    :param ignore_msrs: whether the host swallows accesses to MSRs that KVM does not know; by
        default it is tried out.
    :param log: takes log lines about accesses.
    :param vcpus: for how many vCPUs there is to be a record.
    :param use_native: whether C may evaluate the policy: on the host's KVM, if the core was built.
    :raises CapabilityError: if this KVM lacks what a policy needs.
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
        use_native: bool = True,
    ) -> None:
        kvm.require(Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)
        self._kvm = kvm
        self._ignore_msrs = ignore_msrs
        self._log = None if log is None else RunLog(log)
        self._vms: dict[int, VmFacts] = {}
        self._summaries: list[Summary] = []
        self._changing = threading.Lock()
        self._retired: list[InForce] = []
        self.shared: Shared | None = None
        plan = (
            plan_for(policy, kvm, ignore_msrs)
            if vcpu is None
            else fitting_plan(policy, kvm, vcpu, ignore_msrs)
        )
        if use_native and native.available() and isinstance(kvm.backend, HostBackend):
            self.shared = Shared(Block(vcpus), Names())
        self._by_serial: dict[int, InForce] = {}
        try:
            self._now = self._by_serial[0] = self._in_force(plan, 0)
            self._now.install()
        except BaseException:
            self.close()
            raise

    def _in_force(self, plan: Plan, serial: int) -> InForce:
        return InForce(plan, serial, self._facts, self.shared, self._log)

    @property
    def backend(self) -> str:
        """Return the name of the backend."""
        return self._kvm.backend.name

    @property
    def plan(self) -> Plan:
        """Return the plan of the policy that holds."""
        return self._now.plan

    # Guests of our own

    def add_vm(
        self, vm: Vm, vcpus: Sequence[Vcpu], facts: VmFacts, stop: Callable[[Vcpu], Stop]
    ) -> list[GuestVcpu]:
        """
        Put a VM under the policy, and return what runs its vCPUs.

        :param stop: returns what takes the access at which the policy stops the run, for a vCPU.
        :raises PolicyError: if a model cannot be set up for this VM.
        """
        number = len(self._vms)
        self._vms[number] = facts
        dispatcher = self._now.dispatcher(number)
        install(self.plan, vm)
        backend = self._kvm.backend
        if self.shared is not None and isinstance(backend, HostBackend):
            side = self._now.native(number)
            return [NativeVcpu(vcpu, backend, side, stop(vcpu)) for vcpu in vcpus]
        runners = [PythonVcpu(vcpu, dispatcher, stop(vcpu)) for vcpu in vcpus]
        self._summaries += [runner.summary for runner in runners]
        return list[GuestVcpu](runners)

    # Guests of another VMM

    def check(self) -> None:
        """
        Find out whether the policy's models can be set up, before there is a VM.

        :raises PolicyError: if not.
        """
        self._now.check()

    def policy_of(self, serial: int) -> InForce | None:
        """Return the policy with a number of this run, unless it was replaced long ago."""
        return self._by_serial.get(serial)

    def _facts(self, number: int) -> VmFacts:
        """Return what is known of a VM; of another VMM's, how many vCPUs it has by now."""
        found = self._vms.get(number)
        if found is not None:
            return found
        # Rules that ask where the guest is are C's to choose.
        return VmFacts(vcpus=self._vcpu_counts().get(number, 1), rip=lambda vcpu: 0)

    def _vcpu_counts(self) -> dict[int, int]:
        counts = {number: facts.vcpus for number, facts in self._vms.items()}
        if self.shared is not None:
            for vcpu in self.shared.block.vcpus():
                counts[vcpu.vm] = max(counts.get(vcpu.vm, 1), vcpu.id + 1)
        return counts

    # Change and state

    def replace(self, policy: Policy, installed: Callable[[], None]) -> list[str]:
        """
        Let *policy* hold from now on, and return what its owner should know.

        Registers keep what they hold, and so do models that both policies have.

        :param installed: waits until every VM has the policy's filter; if it raises, the policy
            before holds again.
        :raises PolicyError: if it does not fit this KVM: nothing has changed then.
        """
        with self._changing:
            old = self._now
            plan = plan_for(policy, self._kvm, self._ignore_msrs)
            new = self._in_force(plan, old.serial + 1)
            try:
                new.inherit(old)
                self._by_serial[new.serial] = new
                new.install()
                installed()
            except BaseException:
                old.install()
                self._by_serial.pop(new.serial, None)
                new.close()
                raise
            self._now = new
            if len(self._by_serial) > _KEPT:  # a question of theirs can hardly be waiting still
                self._retired.append(self._by_serial.pop(min(self._by_serial)))
            return list(new.plan.warnings)

    def state(self) -> State:
        """Return what the VMs' registers hold."""
        with self._changing:
            return self._now.state(self._vcpu_counts())

    def restore(self, state: State) -> None:
        """
        Restore what the VMs' registers held.

        :raises PolicyError: if they were saved under another policy.
        """
        with self._changing:
            self._now.restore(state)

    def reset(self) -> None:
        """Reset every VM's registers."""
        with self._changing:
            self._now.reset()

    # The end

    def summary(self) -> Summary:
        """Return what the guests have asked for so far, and what they were answered."""
        parts = list(self._summaries)
        if self.shared is not None:
            parts.append(native_summary(self.shared.block, self.shared.names))
        return Summary.merged(parts)

    def result(self, image: str, end: End, wall_s: float, notes: Sequence[str] = ()) -> RunResult:
        """
        Return what the run leaves.

        :param image: what was run, for people.
        :param wall_s: how long it took, in seconds.
        :param notes: what else the user should know, a line each.
        """
        policies = [*self._retired, *self._by_serial.values()]
        found = [note for one in policies for note in one.notes]
        if self.shared is not None and self.shared.block.raw.refused:
            raw = self.shared.block.raw
            found.append(refused_note(raw.refused, raw.n_shadows))
        if self._log is not None:
            found += self._log.notes
        policy = self.plan.policy
        return RunResult(
            self.backend,
            image,
            policy.source or policy.name,
            end,
            self.summary(),
            wall_s,
            tuple(failure for one in policies for failure in one.failures),
            sum(one.failure_count for one in policies),
            tuple(dict.fromkeys((*found, *notes))),
        )

    def close(self) -> None:
        """Give everything back."""
        for one in (*self._retired, *self._by_serial.values()):
            one.close()
        if self.shared is not None:
            self.shared.block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
