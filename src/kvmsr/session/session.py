# SPDX-License-Identifier: Apache-2.0
"""
A session
---------

A policy at work on a KVM, for one run. The session fits the plan to this KVM, decides whether C or
Python evaluates it, gives each VM its dispatcher and registers, and reports what happened in the
end. It does not matter which VMM drives the guests.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Self

from kvmsr import native
from kvmsr.abi import Cap
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Sink
from kvmsr.dispatch.state import MAX_SHADOWS
from kvmsr.kvm import Kvm, Vcpu, Vm
from kvmsr.native import lib
from kvmsr.native.block import Block
from kvmsr.native.summary import native_summary
from kvmsr.native.table import Names
from kvmsr.policy import Policy
from kvmsr.policy.plan import Plan
from kvmsr.session.facts import VmFacts
from kvmsr.session.fitting import fitting_plan, install, plan_for
from kvmsr.session.in_force import InForce, Shared, refused_note
from kvmsr.session.log import RunLog
from kvmsr.session.result import End, RunResult, VmReport
from kvmsr.session.state import State
from kvmsr.session.vcpu import GuestVcpu, NativeVcpu, PythonVcpu, Stop
from kvmsr.trace import Summary

__all__ = ("Session",)

_KEPT = 8
"""Number of policies, with the one in force, whose questions and log events are still answered."""


class Session:
    """
    A policy at work.

    :param policy: decides MSR accesses.
    :param kvm: the KVM that runs the guests.
    :param vcpu: a vCPU to find out which MSRs KVM knows; by default one of a temporary VM.
    :param ignore_msrs: whether the host swallows accesses to MSRs that KVM does not know; by
        default, the session finds out.
    :param log: receives the accesses that the policy logs.
    :param vcpus: number of vCPU records in the shared memory.
    :param use_native: let C evaluate the policy on the host's KVM, if the core was built.
    :ivar shared: the memory that C works on; None if Python evaluates the policy.
    :ivar restored: whether a state has been restored.
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
        self.restored = False
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
        """Return the plan of the policy in force."""
        return self._now.plan

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
        number = len(self._vms) if self.shared is None else self.shared.block.take_vm()
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
        Check that the policy's models can be set up, before there is a VM.

        :raises PolicyError: if a model cannot be set up.
        """
        self._now.check()

    def policy_of(self, serial: int) -> InForce | None:
        """Return the policy with number *serial* in this run; None if it was replaced long ago."""
        return self._by_serial.get(serial)

    def _facts(self, number: int) -> VmFacts:
        """Return the facts of a VM. Of another VMM's VM, only the number of vCPUs is known."""
        found = self._vms.get(number)
        if found is not None:
            return found
        # Python needs no RIP here: C tests the conditions.
        vcpus = self._vcpu_counts().get(number, 1)
        return VmFacts(vcpus=vcpus, may_grow=True, rip=lambda vcpu: 0)

    def _vcpu_counts(self) -> dict[int, int]:
        counts = {number: facts.vcpus for number, facts in self._vms.items()}
        if self.shared is not None:
            for vcpu in self.shared.block.vcpus():
                vm, count = vcpu.vm, vcpu.id + 1  # another VMM may have written nonsense
                if vm < lib.KVMSR_MAX_VMS and count <= lib.KVMSR_MAX_ID:
                    counts[vm] = max(counts.get(vm, 1), count)
        return counts

    # Change and state

    def replace(self, policy: Policy, installed: Callable[[], None]) -> list[str]:
        """
        Replace the policy in force while guests run, and return warnings about the new one.

        Registers keep their values, and so do models that both policies have.

        :param installed: waits until all VMs have the new policy's filter. If it raises, the old
            policy is put in force again.
        :raises PolicyError: if *policy* does not fit this KVM. Nothing has changed then.
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
            if len(self._by_serial) > _KEPT:  # the oldest one's questions are long answered
                self._retired.append(self._by_serial.pop(min(self._by_serial)))
            return list(new.plan.warnings)

    def state(self) -> State:
        """Return the state of all VMs' registers."""
        with self._changing:
            return self._now.state(self._vcpu_counts())

    def restore(self, state: State) -> None:
        """
        Restore a state returned by :meth:`state`.

        :raises PolicyError: if it was saved under another policy.
        """
        with self._changing:
            self._now.restore(state)
            self.restored = True

    def reset(self) -> None:
        """Reset all VMs' registers."""
        with self._changing:
            self._now.reset()

    # The end

    def summary(self) -> Summary:
        """Return the summary of all accesses so far."""
        parts = list(self._summaries)
        if self.shared is not None:
            parts.append(native_summary(self.shared.block, self.shared.names))
        return Summary.merged(parts)

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
        policies = [*self._retired, *self._by_serial.values()]
        found = [note for one in policies for note in one.notes]
        if self.shared is not None:
            found += [
                refused_note(vm.refused, min(vm.n_shadows, MAX_SHADOWS))
                for _, vm in self.shared.block.vms() if vm.refused
            ]  # fmt: skip
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
            tuple(dict.fromkeys(losses)),
            tuple(vms),
        )

    def close(self) -> None:
        """Free the shared memory and close the host's devices."""
        for one in (*self._retired, *self._by_serial.values()):
            one.close()
        if self.shared is not None:
            self.shared.block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
