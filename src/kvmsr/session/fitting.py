# SPDX-License-Identifier: Apache-2.0
"""
A plan for this KVM
-------------------

Compile a policy for the KVM that runs the guest, and install the plan in a VM.
"""

from dataclasses import replace
from itertools import islice
from typing import Final

from kvmsr.abi import MsrExitReason, MsrFilterFlag
from kvmsr.errors import MsrListError
from kvmsr.kvm import Kvm, MsrFilterRange, Vcpu, Vm
from kvmsr.policy import Policy, Reason
from kvmsr.policy.plan import FilterRange, KernelFacts, Lint, LintId, Plan, compile_policy

__all__ = ("fitting_plan", "host_reads", "install", "plan_for")

_MAX_ASKED: Final = 16_384
"""Number of MSRs to ask KVM about before a policy is installed, at a few microseconds each."""

_UNKNOWN_MSR: Final = 0x474F4F00
"""An MSR that no KVM handles. If the host can read it, ``kvm.ignore_msrs`` is on."""

_MASK: Final = {
    Reason.UNKNOWN: MsrExitReason.UNKNOWN,
    Reason.INVALID: MsrExitReason.INVAL,
    Reason.FILTER: MsrExitReason.FILTER,
}


def host_reads(vcpu: Vcpu, index: int) -> bool:
    """Return whether KVM knows MSR *index*, that is, whether the host can read it."""
    try:
        vcpu.get_msrs([index])
    except MsrListError:
        return False
    return True


def install(plan: Plan, vm: Vm) -> None:
    """Set the exit reasons and the filter of *plan* in *vm*."""
    mask = MsrExitReason(0)
    for reason in plan.reasons:
        mask |= _MASK[reason]
    vm.enable_user_space_msr(mask)
    ranges = [_filter_range(given) for given in plan.filter.ranges]
    vm.set_msr_filter(ranges, default_deny=plan.filter.default_deny)


def _filter_range(given: FilterRange) -> MsrFilterRange:
    flags = (MsrFilterFlag.READ if given.reads else MsrFilterFlag(0)) | (
        MsrFilterFlag.WRITE if given.writes else MsrFilterFlag(0)
    )
    return MsrFilterRange(given.base, given.count, flags, given.bitmap)


def plan_for(policy: Policy, kvm: Kvm, ignore_msrs: bool | None = None) -> Plan:
    """Return the plan for *policy* on this KVM; a temporary VM finds out what KVM knows."""
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return fitting_plan(policy, kvm, vcpu, ignore_msrs)


def fitting_plan(policy: Policy, kvm: Kvm, vcpu: Vcpu, ignore_msrs: bool | None = None) -> Plan:
    """
    Return the plan for *policy* on this KVM.

    A plan saves filter ranges by leaving out MSRs that no KVM is known to handle. This KVM may be
    newer than what is known, so it is asked: if the host can read an MSR, KVM handles it. The
    number of questions is limited. The MSRs that KVM lists come first, then those of narrow rules,
    because the author of such a rule meant just these MSRs.

    :param vcpu: a vCPU to find out which MSRs KVM knows; it need not be the guest's.
    :param ignore_msrs: whether the host swallows accesses to MSRs that KVM does not know; by
        default, this finds out.
    """
    if ignore_msrs is None:
        ignore_msrs = host_reads(vcpu, _UNKNOWN_MSR)
    facts = KernelFacts(ignore_msrs=ignore_msrs)
    listed = {*kvm.get_msr_index_list(), *kvm.get_msr_feature_index_list()}
    if policy.observe:  # KVM handles these, so what it answers is not seen otherwise
        facts = facts.knowing(index for index in listed if not facts.knows(index))
    plan = compile_policy(policy, facts)
    spans = sorted(plan.relied_on(), key=lambda span: span[1] - span[0])
    likely = [n for n in sorted(listed) if any(first <= n <= last for first, last in spans)]
    others = (n for first, last in spans for n in range(first, last + 1) if n not in listed)
    asked = [*likely, *islice(others, _MAX_ASKED)]
    surprises = [index for index in asked if host_reads(vcpu, index)]
    if surprises:
        plan = compile_policy(policy, facts.knowing(surprises))
    if len(asked) < sum(last - first + 1 for first, last in spans):
        message = (
            f"rules for many MSRs rely on this KVM not handling them itself; {len(asked):,} were"
            " tried, the others are taken from what is known of Linux's KVM"
        )
        plan = replace(plan, lints=(*plan.lints, Lint(LintId.RELIES_ON_KERNEL, message)))
    return plan
