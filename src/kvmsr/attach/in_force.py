# SPDX-License-Identifier: Apache-2.0
"""
A policy in force
-----------------

A policy from when it was installed until another one replaces it, for all VMs of a VMM.
"""

import threading
from typing import Final

from kvmsr.abi import Cap
from kvmsr.attach.state import State, VmState
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Dispatcher, HandlerFailure, Sink
from kvmsr.kvm import Kvm
from kvmsr.machine.fitting import fitting_plan
from kvmsr.machine.hostmsr import host_msrs
from kvmsr.native import lib
from kvmsr.native.block import Block
from kvmsr.native.questions import NativeDispatcher
from kvmsr.native.table import Names
from kvmsr.policy import Policy
from kvmsr.policy.plan import Plan

__all__ = ("InForce",)

_MAX_VMS: Final = 512
"""How many VMs' registers can be told apart; a VMM that makes more shares them."""


class InForce:
    """
    A policy, its plan for the host's KVM, and for each VM what Python does of it.

    :param serial: the policy's number in the run.
    :param log: takes the accesses that the policy wants told.
    :ivar plan: the policy, compiled for this KVM.
    :raises HostError: if the host lacks what is needed.
    :raises PolicyError: if the policy does not fit this KVM.
    """

    def __init__(
        self, policy: Policy, block: Block, names: Names, serial: int, log: Sink | None
    ) -> None:
        self.plan = _plan_here(policy)
        self.serial = serial
        self._block = block
        self._names = names
        self._log = log
        self._host = host_msrs(policy)
        self._vms: dict[int, NativeDispatcher] = {}
        self._making = threading.Lock()
        try:
            self.vm(0)  # what is wrong shows before a guest runs
        except BaseException:
            self.close()
            raise

    def install(self) -> None:
        """Let the policy hold from now on."""
        self.vm(0).install(self.serial)

    def vm(self, number: int, vcpus: int = 0) -> NativeDispatcher:
        """
        Return what knows the Python side of the plan, for one VM.

        :param vcpus: how many vCPUs it will have at least.
        """
        with self._making:
            found = self._vms.get(number % _MAX_VMS)
            if found is None:
                there = sum(vcpu.vm == number for vcpu in self._block.vcpus())
                dispatcher = Dispatcher(
                    self.plan,
                    vcpus=max(vcpus, there, 1),
                    rip=lambda vcpu: 0,  # such rules are C's to choose
                    host=self._host,
                    log=self._log,
                )
                found = NativeDispatcher(dispatcher, self._block, self._names, vm=number)
                self._vms[number % _MAX_VMS] = found
            return found

    @property
    def failures(self) -> list[HandlerFailure]:
        """Return the first handler failures of each VM."""
        return [failure for vm in self._vms.values() for failure in vm.dispatcher.failures]

    @property
    def failure_count(self) -> int:
        """Return how many there were."""
        return sum(vm.dispatcher.failure_count for vm in self._vms.values())

    @property
    def notes(self) -> list[str]:
        """Return what the policy's owner should know."""
        notes = list(self.plan.warnings)
        for vm in self._vms.values():
            notes += vm.dispatcher.models.notes
        return notes

    def state(self) -> State:
        """Return what the VMs' registers hold."""
        policy = self.plan.policy.source or self.plan.policy.name
        counts = [0] * max(min(self._block.raw.n_vms, _MAX_VMS), 1)
        for vcpu in self._block.vcpus():
            if vcpu.vm < len(counts):
                counts[vcpu.vm] = max(counts[vcpu.vm], min(vcpu.id + 1, 1 << 16))
        vms = [
            VmState.of(max(count, 1), self.vm(number).state())
            for number, count in enumerate(counts)
        ]
        return State(vms=vms, policy=policy)

    def restore(self, state: State) -> None:
        """
        Let the VMs' registers hold what *state* says; a VM that it does not know keeps its own.

        :raises PolicyError: if that was under another policy.
        """
        for number, kept in enumerate(state.vms[:_MAX_VMS]):
            self.vm(number, kept.vcpus).restore(kept.as_dict())

    def inherit(self, other: "InForce") -> None:
        """Let models that *other* has, too, keep what they hold there."""
        for number, before in other._vms.items():
            models = before.dispatcher.models
            self.vm(number, models.vcpus).dispatcher.models.inherit(models)

    def reset(self) -> None:
        """Let the VMs' registers be as at reset."""
        with self._making:
            self._vms.clear()
        for number in range(_MAX_VMS):
            if number < max(self._block.raw.n_vms, 1):
                lib.kvmsr_shadow_forget(self._block.raw, number)

    def close(self) -> None:
        """Give back what it has of the host."""
        if self._host is not None:
            self._host.close()


def _plan_here(policy: Policy) -> Plan:
    """Return the plan for the host's KVM, which is asked by way of a VM that runs nothing."""
    with Kvm(HostBackend()) as kvm:
        kvm.require(Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)
        vm = kvm.create_vm()
        try:
            vcpu = vm.create_vcpu(0)
            try:
                return fitting_plan(policy, kvm, vcpu)
            finally:
                vcpu.close()
        finally:
            vm.close()
