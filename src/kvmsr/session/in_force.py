# SPDX-License-Identifier: Apache-2.0
"""
A policy in force
-----------------

One policy of a run, from when it is installed until another one replaces it: its plan, and the
dispatchers that evaluate it for each VM.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from kvmsr.dispatch import Dispatcher, HandlerFailure, Sink
from kvmsr.native.block import Block
from kvmsr.native.table import Names, compile_table
from kvmsr.native.vm import NativeVm
from kvmsr.policy.plan import Plan
from kvmsr.session.facts import VmFacts
from kvmsr.session.hostmsr import host_msrs
from kvmsr.session.state import State, VmState
from kvmsr.text import counted

__all__ = ("InForce", "Shared")

MAX_VMS = 512
"""Number of VMs of a run that can be under a policy."""

_MAX_VCPUS = 1 << 16


class Shared(NamedTuple):
    """What all policies of a run share if C evaluates them."""

    block: Block
    names: Names


class InForce:
    """
    A policy, its plan for this KVM, and a dispatcher with the registers of each VM.

    A VM's dispatcher is built when it is first needed, because the VM's vCPUs are known by then.

    :param plan: the policy, compiled for this KVM.
    :param serial: the policy's number in the run.
    :param facts: returns the facts of the VM with a number.
    :param shared: the memory that C works on; None if Python evaluates the policy.
    :param log: receives the accesses that the policy logs.
    :raises HostError: if the host lacks what the policy needs.
    """

    def __init__(
        self,
        plan: Plan,
        serial: int,
        facts: Callable[[int], VmFacts],
        shared: Shared | None,
        log: Sink | None,
    ) -> None:
        self.plan = plan
        self.serial = serial
        self._facts = facts
        self._shared = shared
        self._log = log
        self._host = host_msrs(plan.policy)
        self._dispatchers: dict[int, Dispatcher] = {}
        self._natives: dict[int, NativeVm] = {}
        self._building = threading.RLock()

    def check(self) -> None:
        """
        Check that the policy's models can be set up, before there is a VM.

        :raises PolicyError: if a model cannot be set up.
        """
        self._build(VmFacts(rip=lambda vcpu: 0))

    def dispatcher(self, vm: int) -> Dispatcher:
        """
        Return the dispatcher of a VM.

        :raises PolicyError: if a model cannot be set up for it.
        """
        number = vm % MAX_VMS
        with self._building:
            found = self._dispatchers.get(number)
            if found is None:
                found = self._dispatchers[number] = self._build(self._facts(number))
            return found

    def native(self, vm: int) -> NativeVm:
        """Return the Python side of a VM whose accesses C answers."""
        assert self._shared is not None
        number = vm % MAX_VMS
        with self._building:
            found = self._natives.get(number)
            if found is None:
                found = NativeVm(self.dispatcher(number), *self._shared, vm=number)
                self._natives[number] = found
            return found

    def install(self) -> None:
        """Let C evaluate this policy from now on; do nothing if Python evaluates it."""
        if self._shared is not None:
            block, names = self._shared
            logs = self._log is not None
            block.install(compile_table(self.plan, names, serial=self.serial, logs=logs))

    def _build(self, facts: VmFacts) -> Dispatcher:
        return Dispatcher(
            self.plan,
            vcpus=facts.vcpus,
            clock=facts.clock,
            rip=facts.rip,
            host=self._host,
            log=self._log,
            memory=facts.memory,
        )

    # Results

    @property
    def failures(self) -> list[HandlerFailure]:
        """Return the first handler failures of each VM."""
        return [failure for one in self._known() for failure in one.failures]

    @property
    def failure_count(self) -> int:
        """Return the number of handler failures."""
        return sum(one.failure_count for one in self._known())

    @property
    def notes(self) -> list[str]:
        """Return the lines that the policy's owner should read."""
        notes = list(self.plan.warnings)
        for one in self._known():
            notes += one.models.notes
            if one.shadows.refused:
                notes.append(refused_note(one.shadows.refused, len(one.shadows)))
        return notes

    def _known(self) -> list[Dispatcher]:
        with self._building:
            return list(self._dispatchers.values())

    # Registers

    def state(self, vcpus: dict[int, int]) -> State:
        """
        Return the state of all VMs' registers.

        :param vcpus: the number of vCPUs of each VM, by the VM's number.
        """
        policy = self.plan.policy.source or self.plan.policy.name
        count = min(max(vcpus, default=0) + 1, MAX_VMS)
        vms = [
            VmState.of(min(vcpus.get(number, 1), _MAX_VCPUS), self._registers(number).state())
            for number in range(count)
        ]
        return State(vms=vms, policy=policy)

    def restore(self, state: State) -> None:
        """
        Restore a state returned by :meth:`state`. VMs that it does not have are left alone.

        :raises PolicyError: if it was saved under another policy.
        """
        for number, kept in enumerate(state.vms[:MAX_VMS]):
            self._registers(number).restore(kept.as_dict())

    def inherit(self, other: "InForce") -> None:
        """Copy the state of the models that *other* has in common."""
        for number, before in list(other._dispatchers.items()):
            self.dispatcher(number).models.inherit(before.models)

    def reset(self) -> None:
        """Reset all VMs' registers."""
        with self._building:
            numbers = list(self._dispatchers)
            self._dispatchers.clear()
            self._natives.clear()
        if self._shared is not None:
            for number in numbers or [0]:
                self._shared.block.forget(number)

    def _registers(self, vm: int) -> "Dispatcher | NativeVm":
        return self.dispatcher(vm) if self._shared is None else self.native(vm)

    def close(self) -> None:
        """Close the host's devices."""
        if self._host is not None:
            self._host.close()


def refused_note(refused: int, kept: int) -> str:
    """Return a line about writes to shadowed MSRs that found no room."""
    writes = counted(refused, "write")
    return f"{writes} to shadowed MSRs got #GP: no more than {kept:,} MSRs are kept"
