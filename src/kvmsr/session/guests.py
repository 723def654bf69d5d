# SPDX-License-Identifier: Apache-2.0
"""
The guests of a run
-------------------

The VMs of a run, with what outlives each policy: facts about them, and their registers.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

from kvmsr.dispatch import Registers
from kvmsr.dispatch.models import Cpu
from kvmsr.errors import PolicyError
from kvmsr.kvm import Vm
from kvmsr.native import lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names
from kvmsr.policy import Where
from kvmsr.session.facts import VmFacts
from kvmsr.session.state import State
from kvmsr.session.vcpu import InUse
from kvmsr.text import counted

__all__ = ("Guests", "OwnVm", "Shared")


_SPREAD: Final = 8
"""A vCPU's number is an APIC ID: each level of the topology is rounded up to whole bits in it."""


class Shared(NamedTuple):
    """What all policies of a run share if C evaluates them."""

    block: Block
    names: Names


class OwnVm(NamedTuple):
    """A VM of kvmsr's own machine, and the dispatcher that its vCPUs use."""

    number: int
    vm: Vm
    in_use: InUse


class Guests:
    """
    The VMs of a run. Several threads may use it at once.

    :param shared: the memory that C works on; None if Python evaluates policies.
    :param cpu: returns what is known of the CPUs of other VMMs' guests; called once, if at all.
    :ivar own: the VMs of kvmsr's own machine. For VMs of another VMM, the shim does what is done
        here for these.
    """

    def __init__(self, shared: Shared | None, cpu: Callable[[], Cpu]) -> None:
        self.shared, self._cpu = shared, cache(cpu)
        self.own: list[OwnVm] = []
        self._facts: dict[int, VmFacts] = {}
        self._registers: dict[int, tuple[int, Registers]] = {}
        self._making = threading.Lock()

    def add(self, facts: VmFacts) -> int:
        """Add a VM of kvmsr's own machine, and return its number."""
        number = len(self._facts) if self.shared is None else self.shared.block.take_vm()
        self._facts[number] = facts
        return number

    def refuse_unless_fits(self, state: State) -> None:
        """
        Refuse a state that has more than kvmsr's own machine has.

        :raises PolicyError: if it has more VMs or vCPUs.
        """
        if not self.own:
            return  # another VMM may create more of them
        if len(state.vms) > len(self.own):
            raise PolicyError(f"this state has {len(state.vms)} VMs, and this run has one")
        for own, kept in zip(self.own, state.vms, strict=False):
            here = self._facts[own.number].vcpus
            if kept.vcpus > here:
                raise PolicyError(
                    f"this state has {counted(kept.vcpus, 'vCPU')}, and this machine {here}: use"
                    f" --cpus {kept.vcpus}"
                )

    def facts(self, number: int) -> VmFacts:
        """Return the facts of a VM. Of another VMM's, only the number of vCPUs is certain."""
        found = self._facts.get(number)
        if found is not None:
            return found
        # Python needs no RIP and callers here: C tests the conditions.
        vcpus = self.vcpu_counts().get(number, 1)
        return VmFacts(
            vcpus=vcpus, may_grow=True, rip=lambda vcpu: 0, where=lambda vcpu: Where(0),
            cpu=self._cpu(),
        )  # fmt: skip

    def vcpu_counts(self) -> dict[int, int]:
        """Return the number of vCPUs of each VM, by the VM's number."""
        counts = {number: facts.vcpus for number, facts in self._facts.items()}
        ids: dict[int, list[int]] = {}
        if self.shared is not None:
            for vcpu in self.shared.block.vcpus():
                ids.setdefault(vcpu.vm, []).append(vcpu.id)
        for vm, found in ids.items():
            if vm < lib.KVMSR_MAX_VMS:  # another VMM may have written nonsense
                counts[vm] = max(counts.get(vm, 1), min(max(found) + 1, _SPREAD * len(found)))
        return counts

    def registers(self, number: int) -> Registers:
        """Return the registers of a VM; another VM that has got its number begins with new ones."""
        with self._making:
            found = self._registers.get(number)
            if found is None or not self.is_same(found[0], number):
                found = self._registers[number] = (self._serial(number), Registers())
            return found[1]

    def renew(self, number: int) -> None:
        """Let a VM begin with new registers."""
        with self._making:
            self._registers.pop(number, None)

    def all_registers(self) -> list[tuple[int, Registers]]:
        """Return the number and the registers of each VM that has any."""
        with self._making:
            return [(number, found) for number, (_, found) in self._registers.items()]

    def is_same(self, serial: int, number: int) -> bool:
        """Return whether the VM *number* is the one that had *serial*; 0 is before there is one."""
        return max(serial, 1) == max(self._serial(number), 1)

    def _serial(self, number: int) -> int:
        return 0 if self.shared is None else int(self.shared.block.vm(number).serial)
