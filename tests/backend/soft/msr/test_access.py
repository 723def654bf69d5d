# SPDX-License-Identifier: Apache-2.0
"""What KVM does around its handlers: checks before, forgiveness after."""

import logging

import pytest

from kvmsr.backend.soft.msr.access import MsrRet, get_msr, set_msr
from kvmsr.backend.soft.profile import PROFILES
from tests.backend.soft.msr.scripted import EFER, LSTAR, TSC_AUX, Vcpu, X
from tests.backend.soft.msr.test_cpuid import leaf, vendor

OK, INVALID, UNSUPPORTED = MsrRet.OK, MsrRet.INVALID, MsrRet.UNSUPPORTED
GUEST, HOST = False, True
NEWER, OLDER = "linux-6.18-amd", "linux-6.1-amd"
CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE = 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102
SYSENTER_ESP, SYSENTER_EIP, SMI_COUNT = 0x175, 0x176, 0x34
PV_ENABLE = 0x4B564D02
RDTSCP = leaf(0x8000_0001, edx=1 << 27)
RDPID = leaf(7, flags=1, ecx=1 << 22)
AMD, INTEL, OTHER = map(vendor, (b"AuthenticAMD", b"GenuineIntel", b"CentaurHauls"))
EVERYWHERE = pytest.mark.parametrize("profile", PROFILES)


# Checks before


@EVERYWHERE
@pytest.mark.parametrize("index", (FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, CSTAR))
@pytest.mark.parametrize("host", (GUEST, HOST))
def test_addresses_are_canonical(profile, index, host):
    vcpu = Vcpu(profile)
    for value in (0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, (1 << 64) - 1):
        assert set_msr(vcpu, index, value, host) == OK
        assert get_msr(vcpu, index, host) == (OK, value)
    for value in (0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63):
        assert set_msr(vcpu, index, value, host) == INVALID
    assert get_msr(vcpu, index, host) == (OK, (1 << 64) - 1)


@pytest.mark.parametrize("index", (SYSENTER_ESP, SYSENTER_EIP))
@pytest.mark.parametrize(
    ("profile", "expected"),
    (("linux-6.1-intel", 0xFFFF_8000_0000_1000), ("pvm", 0xFFFF_8000_0000_1000), (OLDER, 0x1000)),
)
def test_sysenter_addresses_become_canonical(profile, index, expected):
    vcpu = Vcpu(profile)
    assert set_msr(vcpu, index, 0x8000_0000_1000, GUEST) == OK
    assert get_msr(vcpu, index, GUEST) == (OK, expected)


@EVERYWHERE
@pytest.mark.parametrize(
    ("feature", "is_there"), (((), False), ((RDTSCP,), True), ((RDPID,), True))
)
def test_tsc_aux_is_there_for_guests_with_an_instruction_for_it(profile, feature, is_there):
    vcpu = Vcpu(profile, cpuid=(AMD, *feature))
    expected = OK if is_there else INVALID
    assert set_msr(vcpu, TSC_AUX, 5, GUEST) == expected
    assert get_msr(vcpu, TSC_AUX, GUEST)[0] == expected
    assert set_msr(vcpu, TSC_AUX, 6, HOST) == OK
    assert get_msr(vcpu, TSC_AUX, HOST) == (OK, 6)


@pytest.mark.parametrize(
    ("profile", "cpuid", "takes"),
    (
        (OLDER, (), True),
        (OLDER, (AMD,), True),
        (OLDER, (INTEL,), False),
        (OLDER, (OTHER,), True),
        (NEWER, (), False),
        (NEWER, (AMD,), True),
        (NEWER, (INTEL,), False),
        (NEWER, (OTHER,), False),
        ("pvm", (), False),
    ),
)
def test_the_high_half_of_tsc_aux(profile, cpuid, takes):
    vcpu = Vcpu(profile, cpuid=cpuid)
    assert set_msr(vcpu, TSC_AUX, 0x1_0000_0001, HOST) == (OK if takes else INVALID)
    assert get_msr(vcpu, TSC_AUX, HOST) == (OK, int(takes))


# Dispatch


@EVERYWHERE
@pytest.mark.parametrize("host", (GUEST, HOST))
def test_what_nobody_knows_is_unsupported(profile, host):
    vcpu = Vcpu(profile)
    assert get_msr(vcpu, X, host) == (UNSUPPORTED, 0)
    assert set_msr(vcpu, X, 0, host) == UNSUPPORTED


def test_handlers_are_told_who_asks():
    vcpu = Vcpu()
    assert set_msr(vcpu, SMI_COUNT, 9, GUEST) == INVALID
    assert set_msr(vcpu, SMI_COUNT, 9, HOST) == OK
    assert get_msr(vcpu, SMI_COUNT, GUEST) == (OK, 9)


# Forgiveness


@pytest.mark.parametrize("host", (GUEST, HOST))
def test_ignored_accesses_are_reported(caplog, host):
    vcpu = Vcpu(ignore_msrs=True)
    with caplog.at_level(logging.INFO, "kvmsr.soft"):
        assert get_msr(vcpu, X, host) == (OK, 0)
        assert set_msr(vcpu, X, 0x15, host) == OK
    assert caplog.messages == ["ignored rdmsr: 0x474f4f00", "ignored wrmsr: 0x474f4f00 data 0x15"]
    assert {record.name for record in caplog.records} == {"kvmsr.soft"}


def test_reports_can_be_off(caplog):
    vcpu = Vcpu(ignore_msrs=True, report_ignored_msrs=False)
    with caplog.at_level(logging.DEBUG):
        assert get_msr(vcpu, X, GUEST) == (OK, 0)
    assert not caplog.messages


def test_nothing_is_reported_that_is_not_ignored(caplog):
    with caplog.at_level(logging.DEBUG):
        get_msr(Vcpu(), X, GUEST)
        get_msr(Vcpu(ignore_msrs=True), EFER, GUEST)
    assert not caplog.messages


def test_what_is_illegal_is_not_ignored():
    vcpu = Vcpu(ignore_msrs=True)
    assert set_msr(vcpu, EFER, 1 << 63, GUEST) == INVALID
    assert set_msr(vcpu, LSTAR, 1 << 63, HOST) == INVALID
    assert get_msr(vcpu, 0x802, GUEST) == (INVALID, 0)


@pytest.mark.parametrize(("profile", "exempt"), ((OLDER, False), (NEWER, True)))
def test_the_host_may_have_zeros_of_what_is_listed(profile, exempt):
    vcpu = Vcpu(profile)
    vcpu.enforce_pv_cpuid = True  # so that the handler says that it is not there
    expected = OK if exempt else UNSUPPORTED
    assert get_msr(vcpu, PV_ENABLE, HOST) == (expected, 0)
    assert set_msr(vcpu, PV_ENABLE, 0, HOST) == expected
    assert set_msr(vcpu, PV_ENABLE, 1, HOST) == UNSUPPORTED
    assert get_msr(vcpu, PV_ENABLE, GUEST) == (UNSUPPORTED, 0)
    assert set_msr(vcpu, PV_ENABLE, 0, GUEST) == UNSUPPORTED


@pytest.mark.parametrize(("profile", "exempt"), ((OLDER, False), (NEWER, True)))
def test_last_branch_records_are_listed_by_newer_kernels(profile, exempt):
    vcpu = Vcpu(profile)
    assert set_msr(vcpu, 0x1DB, 0, HOST) == (OK if exempt else UNSUPPORTED)
    assert set_msr(vcpu, 0x1DB, 1, HOST) == UNSUPPORTED
