# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_MSRS and KVM_SET_MSRS: up to the first failure; and what is listed."""

import pytest

from kvmsr.backend.soft.msr.access import MsrRet, get_msr
from kvmsr.backend.soft.msr.lists import (
    feature_index_list,
    index_list,
    kvm_get_feature_msrs,
    kvm_get_msrs,
    kvm_set_msrs,
)
from kvmsr.backend.soft.profile import PROFILES
from tests.backend.soft.msr.scripted import EFER, LSTAR, STALE, Vcpu, X

NEWER, OLDER = "linux-6.18-amd", "linux-6.1-amd"
X2APIC_ID, TSC = 0x802, 0x10
PLATFORM_INFO, SMI_COUNT, UCODE_REV, ASYNC_PF_INT = 0xCE, 0x34, 0x8B, 0x4B564D06
UNLISTED = (EFER, 0x1B, 0xFE, 0x200, 0x2FF, 0x179, 0x400, 0x802, 0xC000_0100, 0xC000_0101)
EVERYWHERE = pytest.mark.parametrize("profile", PROFILES)


# A vCPU's


def test_a_get_ends_at_the_first_failure():
    vcpu = Vcpu()
    vcpu.cpu.held[EFER] = 0xD01
    entries = [(EFER, STALE), (X, STALE), (EFER, STALE)]
    assert kvm_get_msrs(vcpu, entries) == (1, [(EFER, 0xD01), (X, 0), (EFER, STALE)])
    assert kvm_get_msrs(vcpu, entries[1:]) == (0, [(X, 0), (EFER, STALE)])
    assert kvm_get_msrs(vcpu, []) == (0, [])
    assert entries == [(EFER, STALE), (X, STALE), (EFER, STALE)]


@pytest.mark.parametrize(("profile", "left"), ((OLDER, STALE), (NEWER, 0)))
def test_what_an_illegal_read_leaves(profile, left):
    assert kvm_get_msrs(Vcpu(profile), [(X2APIC_ID, STALE)]) == (0, [(X2APIC_ID, left)])
    assert kvm_get_msrs(Vcpu(profile), [(X, STALE)]) == (0, [(X, 0)])


def test_a_set_ends_at_the_first_failure():
    vcpu = Vcpu()
    assert kvm_set_msrs(vcpu, [(LSTAR, 1), (X, 1), (LSTAR, 2)]) == 1
    assert vcpu.cpu.held[LSTAR] == 1
    assert kvm_set_msrs(vcpu, [(LSTAR, 3), (LSTAR, 4)]) == 2
    assert vcpu.cpu.held[LSTAR] == 4
    assert kvm_set_msrs(vcpu, []) == 0


@EVERYWHERE
def test_the_host_is_not_filtered(profile):
    vcpu = Vcpu(profile)
    vcpu.deny(LSTAR)
    vcpu.vm.user_space_msr_mask = 0
    vcpu.cpu.cpl = 3
    assert kvm_set_msrs(vcpu, [(LSTAR, 8)]) == 1
    assert kvm_get_msrs(vcpu, [(LSTAR, 0)]) == (1, [(LSTAR, 8)])


def test_ioctls_leave_a_pending_access_alone():
    vcpu = Vcpu()
    assert not vcpu.rdmsr()
    pending, page = vcpu.complete_emulation, bytes(vcpu.run)
    kvm_get_msrs(vcpu, [(EFER, 0), (X, 0)])
    kvm_set_msrs(vcpu, [(LSTAR, 0), (X, 0)])
    assert (vcpu.complete_emulation, bytes(vcpu.run)) == (pending, page)


def test_ignore_msrs_hides_a_typo():
    vcpu = Vcpu(ignore_msrs=True)
    assert kvm_get_msrs(vcpu, [(X, STALE), (EFER, STALE)]) == (2, [(X, 0), (EFER, 0)])
    assert kvm_set_msrs(vcpu, [(X, 1)]) == 1


@EVERYWHERE
def test_the_host_may_what_the_guest_may_not(profile):
    vcpu = Vcpu(profile)
    entries = [(PLATFORM_INFO, 1 << 31 | 0x800), (SMI_COUNT, 3), (UCODE_REV, 0x77)]
    for index, value in entries:
        vcpu.wrmsr(index, value)
        assert get_msr(vcpu, index, True) != (MsrRet.OK, value)
    assert kvm_set_msrs(vcpu, entries) == 3
    assert kvm_get_msrs(vcpu, entries) == (3, entries)


# After the first KVM_RUN


@EVERYWHERE
def test_feature_msrs_freeze_when_the_vcpu_has_run(profile):
    vcpu = Vcpu(profile)
    frozen = vcpu.vm.profile.feature_msrs_frozen
    assert kvm_set_msrs(vcpu, [(PLATFORM_INFO, 1 << 31 | 1)]) == 1
    vcpu.has_run = True
    assert kvm_set_msrs(vcpu, [(PLATFORM_INFO, 1 << 31 | 1)]) == 1  # nothing new
    assert kvm_set_msrs(vcpu, [(PLATFORM_INFO, 1 << 31)]) == (0 if frozen else 1)
    assert get_msr(vcpu, PLATFORM_INFO, True) == (MsrRet.OK, 1 << 31 | frozen)
    assert kvm_set_msrs(vcpu, [(UCODE_REV, 0x99), (LSTAR, 1)]) == 2
    assert get_msr(vcpu, UCODE_REV, True) == (MsrRet.OK, 0x99)


# The lists


@EVERYWHERE
def test_a_list_names_an_msr_once(profile):
    profile = PROFILES[profile]
    for found in (index_list(profile), feature_index_list(profile)):
        assert found and len(set(found)) == len(found)
    assert not set(index_list(profile)) & set(UNLISTED)


def test_the_list_of_a_kernel_without_hyperv_and_smm():
    found = index_list(PROFILES["pvm"])
    assert len(found) == 40
    assert found[:3] == (0x174, 0x175, 0x176) and found[16] == 0x12 and found[-1] == 0x4B564D05
    assert feature_index_list(PROFILES["pvm"]) == (0x8B, 0x10A, 0x345, 0xCE)


@EVERYWHERE
def test_what_is_listed_can_be_saved_and_restored(profile):
    vcpu = Vcpu(profile)
    indices = index_list(vcpu.vm.profile)
    count, saved = kvm_get_msrs(vcpu, [(index, STALE) for index in indices])
    assert count == len(indices)
    # Without an in-kernel local APIC this one cannot even be written with 0.
    assert [entry for entry in saved if not kvm_set_msrs(vcpu, [entry])] == [(ASYNC_PF_INT, 0)]


@EVERYWHERE
def test_what_is_not_listed_may_be_there_all_the_same(profile):
    entries = [(index, 0) for index in UNLISTED if index != X2APIC_ID]
    assert kvm_get_msrs(Vcpu(profile), entries)[0] == len(entries)


# The system's


@EVERYWHERE
def test_the_system_knows_every_feature_msr(profile):
    profile = PROFILES[profile]
    entries = [(index, STALE) for index in feature_index_list(profile)]
    count, found = kvm_get_feature_msrs(profile, entries)
    assert count == len(entries)
    assert STALE not in (value for _, value in found)
    assert dict(found)[UCODE_REV]


@EVERYWHERE
def test_the_system_stops_at_what_it_does_not_know(profile):
    entries = [(UCODE_REV, STALE), (X, STALE), (UCODE_REV, STALE)]
    count, found = kvm_get_feature_msrs(PROFILES[profile], entries)
    assert (count, found[1:]) == (1, [(X, 0), (UCODE_REV, STALE)])


@pytest.mark.parametrize(("profile", "count"), ((OLDER, 0), (NEWER, 1)))
def test_newer_systems_give_zeros_of_what_is_listed(profile, count):
    assert kvm_get_feature_msrs(PROFILES[profile], [(TSC, STALE)]) == (count, [(TSC, 0)])


@EVERYWHERE
def test_ignore_msrs_is_the_system_s_too(profile):
    profile = Vcpu(profile, ignore_msrs=True).vm.profile
    assert kvm_get_feature_msrs(profile, [(X, STALE)]) == (1, [(X, 0)])
