# SPDX-License-Identifier: Apache-2.0
"""Profiles: their names, and what they say about the capability."""

import pytest

from kvmsr import backend
from kvmsr.abi import Cap
from kvmsr.backend.soft.profile import PROFILES, find_profile
from kvmsr.errors import MsrListError, UsageError
from kvmsr.kvm import Kvm
from tests.harness import Guest

NEWEST, V3 = "linux-6.18-amd", "patch-v3"


def test_the_default_is_the_newest():
    assert next(iter(PROFILES)) == NEWEST


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_found_by_its_name(name):
    assert find_profile(name) == PROFILES[name]
    assert find_profile(name).name == name
    assert find_profile(name).completion in ("vmx", "svm", "emulator")


@pytest.mark.parametrize(
    ("text", "ignores", "reports"),
    (
        (NEWEST, False, True),
        (f"{NEWEST},ignore_msrs", True, True),
        (f"{NEWEST},ignore_msrs=1,report_ignored_msrs=0", True, False),
        (f"{NEWEST},ignore_msrs=0", False, True),
    ),
)
def test_switches_of_the_module_follow_the_name(text, ignores, reports):
    profile = find_profile(text)
    assert (profile.ignore_msrs, profile.report_ignored_msrs) == (ignores, reports)
    assert profile.name == NEWEST


@pytest.mark.parametrize(
    ("text", "says"),
    (
        ("linux-6.18-amt", "did you mean linux-6.18-amd"),
        ("", "there are"),
        ("pvm,ignore_msr", "did you mean ignore_msrs"),
        ("pvm,ignore_msrs=2", "0 or 1"),
        ("pvm,vendor", "no switch"),
        ("pvm,", "no switch"),
    ),
)
def test_what_is_no_profile_is_refused_with_a_hint(text, says):
    with pytest.raises(UsageError, match=says):
        find_profile(text)


@pytest.mark.parametrize("name", [name for name in PROFILES if name != V3])
def test_the_capability_takes_reasons(name):
    profile = PROFILES[name]
    assert [profile.user_space_msr_mask(value) for value in range(8)] == [*range(8)]
    for value in (8, 1 << 32, 1 << 63 | 7):
        with pytest.raises(OSError, match="Invalid argument"):
            profile.user_space_msr_mask(value)
    assert profile.has_capability(Cap.X86_MSR_FILTER)


def test_in_patch_v3_the_capability_is_a_boolean():
    profile = PROFILES[V3]
    assert [profile.user_space_msr_mask(value) for value in (0, 1, 2, 8, 1 << 32)] == [
        0, 7, 7, 7, 7,
    ]  # fmt: skip
    assert profile.has_capability(Cap.X86_USER_SPACE_MSR)
    assert not profile.has_capability(Cap.X86_MSR_FILTER)


def test_what_is_canonical_goes_by_the_host_cpu():
    def takes(profile, value):
        with Kvm(backend.open("soft", profile=profile)) as kvm:
            guest = Guest(kvm)
            try:
                guest.vcpu.set_msrs({0xC000_0082: value})
            except MsrListError:
                return False
            finally:
                guest.close()
            return True

    assert [takes("pvm", 1 << bit) for bit in (46, 47, 55, 56)] == [True, False, False, False]
    assert [takes("pvm,la57", 1 << bit) for bit in (46, 47, 55, 56)] == [True, True, True, False]
