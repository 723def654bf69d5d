# SPDX-License-Identifier: Apache-2.0
"""
Facts about a VM
----------------

What a policy needs to know about a VM, from the driver that runs it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvmsr.dispatch.models import Cpu
from kvmsr.errors import IoctlError
from kvmsr.kvm import CpuidTable, Kvm, Vcpu
from kvmsr.policy import Where

__all__ = ("VmFacts", "likely_cpu", "with_cpu")


def _no_memory(address: int, size: int) -> bytes | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFacts:
    """
    Facts about a VM.

    :ivar vcpus: number of vCPUs, at least 1.
    :ivar may_grow: whether there may be more vCPUs later.
    :ivar clock: returns the guest's time in nanoseconds; it never goes backwards.
    :ivar rip: returns a vCPU's RIP, called in that vCPU's thread; None if no condition on it is
        tested in Python.
    :ivar where: returns where a vCPU's guest is, with its callers, called in that vCPU's thread;
        the session knows that of a VM of kvmsr's own machine.
    :ivar memory: returns the given number of bytes at a guest-physical address, or None if there is
        no RAM.
    :ivar cpu: the guest's CPU.
    """

    vcpus: int = 1
    may_grow: bool = False
    clock: Callable[[], int] = time.monotonic_ns
    rip: Callable[[int], int] | None = None
    where: Callable[[int], Where] | None = None
    memory: Callable[[int, int], bytes | None] = _no_memory
    cpu: Cpu = field(default_factory=Cpu)


def with_cpu(facts: VmFacts, vcpu: Vcpu) -> VmFacts:
    """Return *facts* about a VM with what is known of *vcpu*'s CPU."""
    return replace(facts, cpu=_cpu(vcpu, vcpu.get_cpuid2()))


def likely_cpu(kvm: Kvm) -> Cpu:
    """Return what another VMM's guests most likely have: the CPU that KVM supports here."""
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return _cpu(vcpu, kvm.get_supported_cpuid())


def _cpu(vcpu: Vcpu, cpuid: CpuidTable) -> Cpu:
    leaf = cpuid.find(1)
    try:
        khz = vcpu.get_tsc_khz()
    except IoctlError:  # EIO: the host's TSC is unstable (Documentation/virt/kvm/api.rst)
        khz = 0
    return Cpu(0 if leaf is None else leaf.eax, khz)
