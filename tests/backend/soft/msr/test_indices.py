# SPDX-License-Identifier: Apache-2.0
"""The lists: their order on the machine that was looked at, and what is listed can be read."""

import pytest

from kvmsr.backend.soft.msr.access import get_msr
from kvmsr.backend.soft.msr.indices import emulated_msrs, feature_msrs, feature_value, msrs_to_save
from kvmsr.backend.soft.profile import PROFILES
from tests.backend.soft.msr.handler_vcpu import HOST, OK, with_lapic

PVM_LIST = """
    174 175 176 c0000081 c0000083 c0000102 c0000084 c0000082 10 277 c0010117 1d9 1db 1dc 1dd 1de
    12 11 4b564d01 4b564d00 4b564d02 4b564d03 4b564d04 4b564d06 4b564d07 3b 6e0 10a 345 1a0 17a 17b
    34 ce 140 c001011f 1fc 8b c0010015 4b564d05
"""
NEVER = (0xC0000080, 0x1B, 0xC0000100, 0xC0000101, 0x200, 0x179, 0x400, 0xFE, 0x800)
every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def listed(profile):
    return (*msrs_to_save(profile), *emulated_msrs(profile))


def test_the_list_of_pvm():
    profile = PROFILES["pvm"]
    assert listed(profile) == tuple(int(index, 16) for index in PVM_LIST.split())
    assert emulated_msrs(profile)[0] == 0x12
    assert feature_msrs(profile) == (0x8B, 0x10A, 0x345, 0xCE)


@every_profile
def test_no_index_twice_and_none_that_is_saved_elsewhere(profile):
    indices = listed(profile)
    assert len(set(indices)) == len(indices)
    assert not set(NEVER) & set(indices)


@every_profile
def test_all_that_is_listed_can_be_saved(profile):
    vcpu = with_lapic(profile.name)
    for index in listed(profile):
        assert get_msr(vcpu, index, HOST)[0] == OK, hex(index)


@every_profile
def test_features_have_values(profile):
    assert all(0 <= feature_value(profile, index) < 1 << 64 for index in feature_msrs(profile))


@pytest.mark.parametrize(
    ("name", "index", "is_listed"),
    [
        ("linux-6.1-amd", 0x9E, True), ("linux-6.1-intel", 0x3A, True),
        ("linux-6.1-amd", 0x3A, False),
        ("linux-6.1-amd", 0xC0010117, True), ("linux-6.1-intel", 0xC001011F, False),
        ("linux-6.1-amd", 0x1D9, False), ("linux-6.18-amd", 0x1D9, True), ("pvm", 0x9E, False),
        ("linux-6.18-amd", 0x40000000, True), ("pvm", 0x40000000, False),
        ("pvm", 0xC0000104, False),
        ("linux-6.1-amd", 0xC0000104, True), ("linux-6.1-intel", 0xC0000104, False),
        ("linux-6.1-intel", 0x4D0, True), ("linux-6.1-amd", 0x4D0, False),
        ("linux-6.1-amd", 0x400000FF, True), ("linux-6.1-amd", 0x40000118, False),
        ("linux-6.18-amd", 0x40000118, True),
    ],
)  # fmt: skip
def test_what_profiles_list(name, index, is_listed):
    assert (index in listed(PROFILES[name])) == is_listed
