# SPDX-License-Identifier: Apache-2.0
"""
Where a guest is
----------------
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from kvmsr.kvm import Vcpu, Vm
from kvmsr.kvm.callers import MOST_CALLERS, find_callers
from kvmsr.policy import Where
from kvmsr.session.facts import VmFacts
from kvmsr.trace import TraceOptions

__all__ = ("locate", "recorded", "with_where")


def locate(vcpu: Vcpu, vm: Vm, callers: int) -> Where:
    """
    Return where a vCPU's guest is. Call it in the vCPU's thread.

    :param callers: how many callers to look for, 0 to 8.
    :raises IoctlError: if KVM does not give the vCPU's registers.
    """
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    return Where(regs.rip, sregs.ss.dpl, *find_callers(vcpu, vm, regs, sregs, callers))


def recorded(trace: TraceOptions | None, vcpu: Vcpu, vm: Vm) -> Callable[[], Where] | None:
    """Return what finds out where a vCPU's guest is, if *trace* is to have that."""
    if trace is None or not trace.where:
        return None
    return partial(locate, vcpu, vm, trace.callers)


def with_where(facts: VmFacts, vm: Vm, vcpus: Iterable[Vcpu]) -> VmFacts:
    """Return *facts* with where the guest of a VM of kvmsr's own machine is."""
    by_number = {vcpu.id: vcpu for vcpu in vcpus}
    return replace(facts, where=lambda number: locate(by_number[number], vm, MOST_CALLERS))
