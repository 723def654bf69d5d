# SPDX-License-Identifier: Apache-2.0
"""
A policy in force
-----------------

One policy of a run, from when it is installed until another one replaces it: its plan, and the
dispatchers that evaluate it for each VM.
"""

import threading
from dataclasses import replace

from kvmsr.dispatch import Dispatcher, HandlerFailure, HostMsrs, Registers, Sink
from kvmsr.native import lib
from kvmsr.native.table import compile_table
from kvmsr.native.vm import NativeVm
from kvmsr.policy import Where
from kvmsr.policy.plan import Plan, not_observed_lines
from kvmsr.session.facts import VmFacts
from kvmsr.session.fitting import install
from kvmsr.session.guests import Guests
from kvmsr.session.state import State, VmState
from kvmsr.text import counted

__all__ = ("InForce",)

_MAX_FAILURES = 32
_MAX_NOTES = 100


class InForce:
    """
    A policy, its plan for this KVM, and a dispatcher for each VM.

    A VM's dispatcher is built when it is first needed, because the VM's vCPUs are known by then.

    :param plan: the policy, compiled for this KVM.
    :param serial: the policy's number in the run.
    :param guests: the VMs of the run.
    :param host: the host's registers, if the policy needs them.
    :param log: receives the accesses that the policy logs.
    """

    def __init__(
        self,
        plan: Plan,
        serial: int,
        guests: Guests,
        host: HostMsrs | None,
        log: Sink | None,
    ) -> None:
        self.plan = plan
        self.serial = serial
        self._guests = guests
        self._shared = guests.shared
        self._log = log
        self._host = host
        self._has_begun = False
        self._table = b""
        self._dispatchers: dict[int, Dispatcher] = {}
        self._natives: dict[int, NativeVm] = {}
        self._gone = _Findings()
        self._building = threading.RLock()

    def check(self) -> None:
        """
        Check that the policy's models can be set up, before there is a VM.

        :raises PolicyError: if a model cannot be set up.
        """
        self._build(VmFacts(rip=lambda vcpu: 0, where=lambda vcpu: Where(0)), Registers())

    def dispatcher(self, vm: int) -> Dispatcher:
        """
        Return the dispatcher of a VM.

        :raises PolicyError: if a model cannot be set up for it.
        """
        with self._building:
            found = self._dispatchers.get(vm)
            if found is None:
                found = self._add(vm, self._guests.facts(vm))
            return found

    def _add(self, vm: int, facts: VmFacts) -> Dispatcher:
        made = self._dispatchers[vm] = self._build(facts, self._guests.registers(vm))
        if self._has_begun:
            made.models.take_over()
        return made

    def native(self, vm: int) -> NativeVm:
        """Return the Python side of a VM whose accesses C answers."""
        found = self._natives.get(vm)
        if found is not None and found.is_current():
            return found
        assert self._shared is not None
        with self._building:
            found = self._natives.get(vm)
            if found is not None and not found.is_current():
                self._gone.add(self._dispatchers.pop(vm))  # another VM has got its number
                found = None
            if found is None:
                found = NativeVm(self.dispatcher(vm), *self._shared, vm=vm)
                self._natives[vm] = found
            return found

    def _build(self, facts: VmFacts, registers: Registers) -> Dispatcher:
        return Dispatcher(
            self.plan,
            vcpus=facts.vcpus,
            clock=facts.clock,
            rip=facts.rip,
            where=facts.where,
            host=self._host,
            log=self._log,
            memory=facts.memory,
            cpu=facts.cpu,
            registers=registers,
        )

    # In force

    def get_ready(self, old: "InForce") -> None:
        """Build the dispatchers of the VMs that *old* has, so that no reset of one goes unseen."""
        for number in old.known():
            self.dispatcher(number)
            if self._shared is not None:
                self.native(number)
                old.native(number).follow_resets()

    def begin(self) -> list[str]:
        """
        Answer accesses from now on, and return warnings about models.

        :raises IoctlError: if KVM refuses the filter for a VM of kvmsr's own machine.
        """
        with self._building:
            self._has_begun = True
            warnings = [line for one in self.known().values() for line in one.models.take_over()]
            self.install()
        return warnings

    def compile(self) -> None:
        """Compile the table for C, which gives the rules' names their numbers."""
        if self._shared is not None:
            names, logs = self._shared.names, self._log is not None
            self._table = compile_table(self.plan, names, serial=self.serial, logs=logs)

    def install(self) -> None:
        """
        Let C, or the vCPUs of kvmsr's own machine, use this policy, and set its filter.

        What the filter already has KVM hand over is decided by this policy at once, so the filter
        comes last: an access for which the policy has no rule is then handed back to KVM.

        :raises IoctlError: if KVM refuses the filter for a VM of kvmsr's own machine.
        """
        if self._shared is not None:
            if not self._table:
                self.compile()
            self._shared.block.install(self._table)
            if any(rule.when and rule.when.caller for rule in self.plan.policy.rules):
                self._shared.block.tables.reads = True
        for own in self._guests.own:
            own.in_use.dispatcher = self.dispatcher(own.number)
        for own in self._guests.own:
            install(self.plan, own.vm)

    def give_back(self) -> None:
        """Give the models back to the policy before this one, which is put in force again."""
        for one in self.known().values():
            one.models.give_back()

    def settle(self) -> None:
        """Note that the policy is in force in all VMs: it will not be given back."""
        for one in self.known().values():
            one.models.settle()

    # Results

    @property
    def failures(self) -> list[HandlerFailure]:
        """Return the first handler failures of each VM."""
        return self._findings().failures

    @property
    def failure_count(self) -> int:
        """Return the number of handler failures."""
        return self._findings().failure_count

    @property
    def notes(self) -> list[str]:
        """Return the lines that the policy's owner should read."""
        observing = not_observed_lines(self.plan.not_observed)
        return [*self.plan.warnings, *observing, *self._findings().notes]

    def _findings(self) -> "_Findings":
        found = _Findings()
        with self._building:
            found.extend(self._gone)
            for one in self._dispatchers.values():
                found.add(one)
        return found

    # Registers

    def registers(self) -> list[tuple[int, Registers]]:
        """Return the numbers and the registers of the VMs that have any."""
        return list(self._guests.all_registers())

    def known(self) -> dict[int, Dispatcher]:
        """Return the dispatchers that have been built so far, by the VM's number."""
        with self._building:
            return dict(self._dispatchers)

    def state(self) -> State:
        """Return the state of all VMs' registers."""
        vcpus = self._guests.vcpu_counts()
        policy = self.plan.policy.source or self.plan.policy.name
        vms = [
            VmState.of(vcpus.get(number, 1), self._registers(number).state())
            for number in range(max(vcpus, default=0) + 1)
        ]
        return State(vms=vms, policy=policy)

    def restore(self, state: State) -> None:
        """
        Restore a state returned by :meth:`state`. VMs that it does not have are left alone.

        :raises PolicyError: if it was saved under another policy.
        """
        most = len(state.vms) if self._shared is None else lib.KVMSR_MAX_VMS
        for number, kept in enumerate(state.vms[:most]):
            self._expect_vcpus(number, kept.vcpus)
            self._registers(number).restore(kept.as_dict())

    def _expect_vcpus(self, vm: int, count: int) -> None:
        """Let a VM's models have *count* vCPUs at least, if it may have so many later."""
        facts = self._guests.facts(vm)
        with self._building:
            found = self._dispatchers.get(vm)
            if facts.may_grow and (found is None or found.models.vcpus < count):
                if found is not None:
                    self._gone.add(found)
                self._natives.pop(vm, None)
                self._guests.renew(vm)
                self._add(vm, replace(facts, vcpus=max(facts.vcpus, count)))

    def reset(self) -> None:
        """Reset all VMs' registers."""
        with self._building:
            numbers = list(self._dispatchers)
        for number in numbers or [0]:
            self._registers(number).reset()

    def _registers(self, vm: int) -> "Dispatcher | NativeVm":
        return self.dispatcher(vm) if self._shared is None else self.native(vm)


class _Findings:
    """What dispatchers have found: the first failures of handlers, their number, and notes."""

    def __init__(self) -> None:
        self.failures: list[HandlerFailure] = []
        self.failure_count = 0
        self.notes: list[str] = []

    def add(self, one: Dispatcher) -> None:
        """Add what *one* has found."""
        notes = list(one.models.notes)
        if one.shadows.refused:
            notes.append(refused_note(one.shadows.refused, len(one.shadows)))
        self._add(one.failures, one.failure_count, notes)

    def extend(self, other: "_Findings") -> None:
        """Add what *other* has."""
        self._add(other.failures, other.failure_count, other.notes)

    def _add(self, failures: list[HandlerFailure], count: int, notes: list[str]) -> None:
        self.failures += failures[: _MAX_FAILURES - len(self.failures)]
        self.failure_count += count
        self.notes += notes[: _MAX_NOTES - len(self.notes)]


def refused_note(refused: int, kept: int) -> str:
    """Return a line about writes to shadowed MSRs that found no room."""
    writes = counted(refused, "write")
    return f"{writes} to shadowed MSRs got #GP: no more than {kept:,} MSRs are kept"
