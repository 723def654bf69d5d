# SPDX-License-Identifier: Apache-2.0
"""
MSR lists of ioctls
-------------------

KVM_GET_MSRS and KVM_SET_MSRS: entry by entry, up to the first that fails (__msr_io of
arch/x86/kvm/x86.c).
"""

from kvmsr.backend.soft.msr.access import get_msr, pardons, set_msr
from kvmsr.backend.soft.msr.indices import (
    emulated_msrs,
    feature_msrs,
    feature_value,
    msrs_to_save,
)
from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.vcpu import MsrVcpu
from kvmsr.backend.soft.profile import Profile

__all__ = (
    "feature_index_list",
    "index_list",
    "kvm_get_feature_msrs",
    "kvm_get_msrs",
    "kvm_set_msrs",
)

Entries = list[tuple[int, int]]
"""Indices and values."""

_UCODE_REV = 0x8B


def index_list(profile: Profile) -> tuple[int, ...]:
    """Return what KVM_GET_MSR_INDEX_LIST gives."""
    return (*msrs_to_save(profile), *emulated_msrs(profile))


def feature_index_list(profile: Profile) -> tuple[int, ...]:
    """Return what KVM_GET_MSR_FEATURE_INDEX_LIST gives."""
    return feature_msrs(profile)


def kvm_get_msrs(vcpu: MsrVcpu, entries: Entries) -> tuple[int, Entries]:
    """Return how many entries could be read, and all of them, to be copied back."""
    found = list(entries)
    for number, (index, _) in enumerate(entries):
        result, value = get_msr(vcpu, index, True)
        if result != MsrRet.OK:
            if vcpu.vm.profile.zeroes_failed_get or result == MsrRet.UNSUPPORTED:
                found[number] = (index, 0)
            return number, found
        found[number] = (index, value)
    return len(entries), found


def kvm_set_msrs(vcpu: MsrVcpu, entries: Entries) -> int:
    """Write entries in order; return how many could be written."""
    for number, (index, value) in enumerate(entries):
        if _do_set_msr(vcpu, index, value) != MsrRet.OK:
            return number
    return len(entries)


def _do_set_msr(vcpu: MsrVcpu, index: int, value: int) -> MsrRet:
    profile = vcpu.vm.profile
    is_frozen = profile.feature_msrs_frozen and vcpu.has_run
    if is_frozen and index != _UCODE_REV and index in feature_msrs(profile):
        same = get_msr(vcpu, index, True) == (MsrRet.OK, value)
        return MsrRet.OK if same else MsrRet.INVALID
    return set_msr(vcpu, index, value, True)


def kvm_get_feature_msrs(profile: Profile, entries: Entries) -> tuple[int, Entries]:
    """Do KVM_GET_MSRS on the system fd: what the host supports."""
    found = list(entries)
    for number, (index, _) in enumerate(entries):
        is_known = index in feature_msrs(profile)
        found[number] = (index, feature_value(profile, index) if is_known else 0)
        if not is_known and not pardons(profile, index, host=profile.exempts_all_listed):
            return number, found
    return len(entries), found
