# SPDX-License-Identifier: Apache-2.0
"""Machine-check banks: how many, what they take, and KVM_X86_SETUP_MCE."""

import errno

import pytest

from kvmsr.backend.soft.msr.mce import setup_mce, supported_mcg_cap
from kvmsr.backend.soft.profile import PROFILES
from tests.backend.soft.msr.handler_vcpu import (
    AMD_61,
    HOST,
    INTEL_61,
    INVALID,
    NEWEST,
    OK,
    PVM,
    U64,
    UNSUPPORTED,
    HandlerVcpu,
    cpuid,
)  # fmt: skip

MCG_CAP, MCG_STATUS, MCG_CTL, MC0, MC0_CTL2, HWCR = 0x179, 0x17A, 0x17B, 0x400, 0x280, 0xC0010015
CTL_P, CMCI_P, SER_P, LMCE_P = 1 << 8, 1 << 10, 1 << 24, 1 << 27


def set_up(cap, profile=INTEL_61):
    vcpu = HandlerVcpu(profile)
    setup_mce(vcpu, cap)
    return vcpu


@pytest.mark.parametrize("cap", [0, 33, CTL_P, 10 | 1 << 9, 10 | 1 << 32])
def test_illegal_mcg_caps(cap):
    with pytest.raises(OSError) as raised:
        set_up(cap)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("profile", "cap"),
    [(NEWEST, CTL_P | SER_P), (PVM, 0x1000100), (INTEL_61, CTL_P | SER_P | CMCI_P | LMCE_P)],
)
def test_what_can_be_set_up(profile, cap):
    assert supported_mcg_cap(PROFILES[profile]) == cap
    assert set_up(cap | 10, profile).value(MCG_CAP) == cap | 10


def test_cmci_is_intels():
    with pytest.raises(OSError):
        set_up(CMCI_P | 10, NEWEST)


def test_set_up_enables_all():
    vcpu = set_up(CTL_P | 2)
    assert (vcpu.value(MCG_CAP), vcpu.value(MCG_CTL)) == (CTL_P | 2, U64)
    assert [vcpu.value(MC0 + n) for n in range(8)] == [U64, 0, 0, 0] * 2
    assert set_up(2).value(MCG_CTL) == 0


def test_banks_end_where_mcg_cap_says():
    vcpu = HandlerVcpu()
    assert vcpu.read(0x47F) == (OK, 0)
    assert vcpu.read(0x480) == (UNSUPPORTED, 0)
    vcpu = set_up(CMCI_P | 2)
    for index, result in ((0x407, OK), (0x408, INVALID), (0x281, OK), (0x282, INVALID)):
        assert vcpu.read(index)[0] == vcpu.write(index, 0) == result


@pytest.mark.parametrize(
    ("value", "result"),
    [(0, OK), (U64, OK), (U64 - 1, OK), (U64 - (1 << 10), OK), (U64 - 2, INVALID), (1, INVALID)],
)
def test_mci_ctl(value, result):
    for host in (False, True):
        assert HandlerVcpu().write(MC0, value, host) == result


def test_mci_status():
    guest = HandlerVcpu(cpuid_entries=cpuid())
    assert (guest.write(MC0 + 1, 0), guest.write(MC0 + 1, 1)) == (OK, INVALID)
    assert guest.write(MC0 + 1, 1, HOST) == OK
    assert guest.write(HWCR, 1 << 18) == OK
    assert guest.write(MC0 + 1, 3) == OK and guest.read(MC0 + 1) == (OK, 3)
    intel = HandlerVcpu(cpuid_entries=cpuid(vendor="GenuineIntel"))
    intel.write(HWCR, 1 << 18)
    assert intel.write(MC0 + 1, 3) == INVALID
    assert intel.write(MC0 + 2, 3) == intel.write(MC0 + 3, 3) == OK


def test_mcg_ctl_needs_ctl_p():
    vcpu = HandlerVcpu(AMD_61)
    assert (vcpu.read(MCG_CTL), vcpu.read(MCG_CTL, HOST)) == ((INVALID, 0), (OK, 0))
    assert (vcpu.write(MCG_CTL, 0), vcpu.write(MCG_CTL, 0, HOST)) == (INVALID, OK)
    assert vcpu.write(MCG_CTL, U64, HOST) == INVALID
    vcpu = set_up(CTL_P | 1)
    assert [vcpu.write(MCG_CTL, value) for value in (0, 1, U64)] == [OK, INVALID, OK]


def test_mci_ctl2_needs_cmci():
    vcpu = HandlerVcpu()
    assert (vcpu.read(MC0_CTL2), vcpu.read(MC0_CTL2, HOST)) == ((INVALID, 0), (OK, 0))
    assert (vcpu.write(MC0_CTL2, 0), vcpu.write(MC0_CTL2, 0, HOST)) == (INVALID, OK)
    assert vcpu.write(MC0_CTL2, 1, HOST) == INVALID
    vcpu = set_up(CMCI_P | 1)
    values = (0, 1 << 30 | 0x7FFF, 1 << 15, 1 << 31)
    assert [vcpu.write(MC0_CTL2, value) for value in values] == [OK, OK, INVALID, INVALID]


def test_mcg_status_takes_anything_and_mcg_cap_nothing():
    vcpu = HandlerVcpu()
    assert vcpu.write(MCG_STATUS, U64) == OK and vcpu.read(MCG_STATUS) == (OK, U64)
    assert vcpu.write(MCG_CAP, 0) == vcpu.write(MCG_CAP, 0, HOST) == UNSUPPORTED
