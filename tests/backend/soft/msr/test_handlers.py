# SPDX-License-Identifier: Apache-2.0
"""What every KVM handles: the values at RESET, who may write what, what fails and how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.backend.soft.profile import PROFILES
from tests.backend.soft.msr.handler_vcpu import (
    AMD_61,
    HOST,
    INTEL_61,
    INVALID,
    KVMS,
    NEWEST,
    OK,
    PVM,
    U64,
    UNSUPPORTED,
    HandlerVcpu,
    with_lapic,
)  # fmt: skip

TSC, APIC_BASE, TSC_ADJUST, UCODE_REV, PLATFORM_INFO = 0x10, 0x1B, 0x3B, 0x8B, 0xCE
ARCH_CAPABILITIES, PERF_CAPABILITIES = 0x10A, 0x345
MISC_FEATURES, MISC_ENABLE, PAT = 0x140, 0x1A0, 0x277
TSC_DEADLINE, XSS, XFD, EFER, HWCR = 0x6E0, 0xDA0, 0x1C4, 0xC0000080, 0xC0010015
SCE, LME, LMA, NX, FFXSR = 1, 1 << 8, 1 << 10, 1 << 11, 1 << 14
CPUID_FAULT = 1 << 31

every_kvm = pytest.mark.parametrize("profile", KVMS)


@every_kvm
@pytest.mark.parametrize(
    ("index", "value"),
    [
        (PAT, 0x0007040600070406), (0xFE, 0x508), (0x179, 0x20), (0x4B564D05, 1),
        (PLATFORM_INFO, CPUID_FAULT), (TSC_ADJUST, 0), (EFER, 0), (HWCR, 0),
    ],
)  # fmt: skip
def test_values_after_reset(profile, index, value):
    assert HandlerVcpu(profile).value(index) == value


@pytest.mark.parametrize(
    ("profile", "misc_enable", "microcode"),
    [
        (AMD_61, 0x1800, 0x01000065), (INTEL_61, 0x1800, 0x100000000),
        (NEWEST, 0x1800, 0x01000065), (PVM, 1, 0),
    ],
)  # fmt: skip
def test_values_after_reset_that_differ(profile, misc_enable, microcode):
    vcpu = HandlerVcpu(profile)
    assert (vcpu.value(MISC_ENABLE), vcpu.value(UCODE_REV)) == (misc_enable, microcode)


def test_init_clears_what_talks_to_the_host_and_keeps_the_rest():
    vcpu = with_lapic()
    cleared = {0x34: 7, 0x4B564D01: 0x1001, 0x4B564D03: 0x1001, 0x4B564D06: 0xEC}
    kept = {TSC_ADJUST: 0, MISC_ENABLE: 0x1801, 0x200: 6, 0x4B564D05: 0, UCODE_REV: 9}
    for index, value in (cleared | kept).items():
        assert vcpu.write(index, value, HOST) == OK
    vcpu.msrs.reset(vcpu)
    assert not any(vcpu.value(index) for index in cleared)
    assert {index: vcpu.value(index) for index in kept} == kept


@every_kvm
@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x198, 0x400000003E8), (0xCD, 3), (0x2C, 0x1000000), (0, 0), (1, 0), (0x17, 0), (0x2A, 0),
        (0x606, 0), (0x611, 0), (0x619, 0), (0x639, 0), (0x641, 0), (0x1DB, 0), (0xC0010010, 0),
        (0x199, 0), (0xC0010055, 0), (0xC0010112, 0), (0xC0010113, 0),
    ],
)  # fmt: skip
def test_constants_that_nobody_writes(profile, index, value):
    vcpu = HandlerVcpu(profile)
    assert vcpu.read(index) == (OK, value)
    assert vcpu.write(index, value) == UNSUPPORTED


@every_kvm
@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x11E, 0xBE702111), (0xC001001B, 0x20000000), (0xC001001F, 0), (0xC001102A, 0),
        (0xC0011022, 0), (0xC0011023, 0), (0xC001102C, 0), (0xC1, 0), (0x187, 0), (0xC0010000, 0),
        (0xC0010007, 0),
    ],
)  # fmt: skip
def test_writes_that_are_dropped(profile, index, value):
    vcpu = HandlerVcpu(profile)
    assert vcpu.write(index, 0x123456789) == OK
    assert vcpu.read(index) == (OK, value)


@every_kvm
@pytest.mark.parametrize("index", [0x79, 0xC0010020])
def test_microcode_updates_are_write_only(profile, index):
    vcpu = HandlerVcpu(profile)
    assert (vcpu.read(index), vcpu.write(index, 5)) == ((UNSUPPORTED, 0), OK)


@every_kvm
@pytest.mark.parametrize(
    "index",
    [
        0x35, 0x1A2, 0x1AD, 0x1AE, 0x1B0, 0x610, 0x614, 0x770, 0xE7, 0xE8, 0xC0010061, 0xC0010299,
        0xC0011020, 0x38D, 0x38F, 0x309, 0xC0010200, 0x480 + 0x12, 0x4B564D08, 0x4B564DF0, 0x6A0,
    ],
)  # fmt: skip
def test_the_business_of_user_space(profile, index):
    vcpu = HandlerVcpu(profile)
    assert vcpu.read(index) == (UNSUPPORTED, 0)
    assert vcpu.write(index, 0) == UNSUPPORTED


@every_kvm
def test_who_may_write_what_tells_of_the_host(profile):
    vcpu = HandlerVcpu(profile)
    assert (vcpu.write(UCODE_REV, 5), vcpu.write(0x34, 5), vcpu.write(PLATFORM_INFO, 5)) == (
        OK, INVALID, INVALID,
    )  # fmt: skip
    assert vcpu.value(UCODE_REV) != 5
    for index in (UCODE_REV, 0x34, PLATFORM_INFO):
        assert vcpu.write(index, 5, HOST) == OK
        assert vcpu.read(index) == (OK, 5)


def test_smbase_is_the_hosts_where_there_is_smm():
    vcpu = HandlerVcpu(AMD_61)
    assert (vcpu.read(0x9E), vcpu.write(0x9E, 0)) == ((INVALID, 0), INVALID)
    assert vcpu.value(0x9E) == 0x30000
    assert vcpu.write(0x9E, 0xA0000, HOST) == OK and vcpu.value(0x9E) == 0xA0000
    without = HandlerVcpu(PVM)
    assert (without.read(0x9E, HOST), without.write(0x9E, 0, HOST)) == ((INVALID, 0), INVALID)


def test_mmio_conf_base_takes_only_0():
    vcpu = HandlerVcpu()
    assert [vcpu.write(0xC0010058, value) for value in (0, 1)] == [OK, INVALID]


# EFER and APIC_BASE


@every_kvm
@pytest.mark.parametrize("bit", [1 << 1, 1 << 13, 1 << 63])
def test_efer_reserved_bits_bar_the_host_too(profile, bit):
    assert HandlerVcpu(profile, "lm").write(EFER, bit, HOST) == INVALID


@pytest.mark.parametrize(
    ("profile", "ok"), [(AMD_61, True), (NEWEST, True), (INTEL_61, False), (PVM, False)]
)
def test_ffxsr_is_amds(profile, ok):
    assert HandlerVcpu(profile, "fxsr_opt").write(EFER, FFXSR) == (OK if ok else INVALID)


@pytest.mark.parametrize(
    ("bit", "feature"),
    [
        (LME, "lm"), (NX, "nx"), (FFXSR, "fxsr_opt"),
        (LMA, "lm"),
    ],
)  # fmt: skip
def test_efer_gates_are_for_guests(bit, feature):
    assert HandlerVcpu().write(EFER, bit) == INVALID
    assert HandlerVcpu().write(EFER, bit, HOST) == OK
    assert HandlerVcpu(NEWEST, feature).write(EFER, bit) == OK


def test_lme_stays_while_the_guest_pages():
    vcpu = HandlerVcpu(NEWEST, "lm", "nx")
    assert vcpu.write(EFER, LME) == OK
    vcpu.cpu.paging = True
    assert vcpu.write(EFER, LME | SCE | NX) == OK
    assert vcpu.write(EFER, SCE) == INVALID
    assert vcpu.value(EFER) == LME | SCE | NX
    assert vcpu.write(EFER, SCE, HOST) == OK


BASE, ENABLED, X2APIC, BSP = 0xFEE00000, 1 << 11, 1 << 10, 1 << 8
XAPIC = BASE | ENABLED | BSP


@every_kvm
@pytest.mark.parametrize("value", [XAPIC | 1, XAPIC | 0x80, XAPIC | 0x200, XAPIC | 1 << 40])
def test_apic_base_reserved_bits(profile, value):
    vcpu = HandlerVcpu(profile, "x2apic")
    assert vcpu.write(APIC_BASE, value, HOST) == INVALID
    assert vcpu.read(APIC_BASE) == (OK, XAPIC)


def test_apic_base_without_x2apic():
    assert HandlerVcpu().write(APIC_BASE, XAPIC | X2APIC, HOST) == INVALID


@pytest.mark.parametrize(
    ("old", "new", "guest", "host"),
    [
        (ENABLED, ENABLED | X2APIC, OK, OK), (ENABLED, 0, OK, OK), (0, ENABLED, OK, OK),
        (ENABLED | X2APIC, 0, OK, OK), (ENABLED | X2APIC, ENABLED, INVALID, OK),
        (0, ENABLED | X2APIC, INVALID, OK), (ENABLED, X2APIC, INVALID, INVALID),
    ],
)  # fmt: skip
def test_apic_modes(old, new, guest, host):
    for host_asks, result in ((False, guest), (True, host)):
        vcpu = HandlerVcpu(NEWEST, "x2apic")
        vcpu.apic_base = BASE | old
        assert vcpu.write(APIC_BASE, BASE | new, host_asks) == result
        assert vcpu.apic_base == BASE | (new if result == OK else old)


# Memory types


@given(st.integers(0, U64))
def test_pat_takes_memory_types(value):
    legal = set(value.to_bytes(8, "little")) <= {0, 1, 4, 5, 6, 7}
    assert HandlerVcpu().write(PAT, value) == (OK if legal else INVALID)
    vcpu = HandlerVcpu(PVM)
    assert vcpu.write(PAT, value) == OK and vcpu.read(PAT) == (OK, value)


@pytest.mark.parametrize("byte", [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x80])
@pytest.mark.parametrize("place", [0, 56])
def test_one_byte_of_pat(byte, place):
    assert HandlerVcpu().write(PAT, byte << place) == (INVALID if byte in (2, 3, 8, 0x80) else OK)


@every_kvm
@pytest.mark.parametrize(
    ("index", "value", "result"),
    [
        (0x200, 0x6, OK), (0x200, 2, INVALID), (0x200, 0x106, INVALID), (0x20E, 0xFFF000, OK),
        (0x200, 1 << 40, INVALID), (0x201, 0x800, OK), (0x201, 0x400, INVALID),
        (0x201, 1 << 39 | 0x800, OK), (0x201, 1 << 40, INVALID), (0x250, 0x0606060606060606, OK),
        (0x26F, 0x0106040500060606, OK), (0x259, 2 << 56, INVALID), (0x2FF, 0xC06, OK),
        (0x2FF, 0x1000, INVALID), (0x2FF, 0xC07, INVALID), (0x210, 0, INVALID), (0x24F, 0, INVALID),
    ],
)  # fmt: skip
def test_mtrrs(profile, index, value, result):
    vcpu = HandlerVcpu(profile, "nx")
    assert vcpu.write(index, value) == result
    expected = (INVALID, 0) if 0x210 <= index < 0x250 else (OK, value if result == OK else 0)
    assert vcpu.read(index) == expected
    assert vcpu.write(0xFE, 0) == UNSUPPORTED


# Time


def test_a_guest_that_writes_its_tsc_moves_it_and_tsc_adjust():
    vcpu = HandlerVcpu(NEWEST, "tsc_adjust")
    assert vcpu.write(TSC, 1_000_000) == OK
    assert vcpu.read(TSC) == (OK, 1_000_000)
    assert vcpu.read(TSC_ADJUST) == (OK, 1_000_000 - 5_000)
    assert vcpu.write(TSC_ADJUST, 0) == OK
    assert vcpu.read(TSC) == (OK, 5_000)


def test_the_host_sets_the_tsc_and_tsc_adjust_each_for_itself():
    vcpu = HandlerVcpu(NEWEST, "tsc_adjust")
    assert vcpu.write(TSC, 100, HOST) == OK
    assert (vcpu.read(TSC), vcpu.read(TSC_ADJUST)) == ((OK, 100), (OK, 0))
    assert vcpu.write(TSC_ADJUST, 50, HOST) == OK
    assert (vcpu.read(TSC), vcpu.read(TSC_ADJUST)) == ((OK, 100), (OK, 50))


def test_the_tsc_that_never_moves():
    vcpu = HandlerVcpu(PVM, "tsc_adjust")
    assert vcpu.write(TSC, 0) == OK
    assert (vcpu.read(TSC), vcpu.read(TSC_ADJUST)) == ((OK, 5_000), (OK, -5_000 & U64))
    assert vcpu.write(TSC, 0, HOST) == OK
    assert (vcpu.read(TSC), vcpu.read(TSC_ADJUST)) == ((OK, 5_000), (OK, -5_000 & U64))


@every_kvm
def test_tsc_adjust_without_cpuid_is_dropped(profile):
    vcpu = HandlerVcpu(profile)
    for host in (False, True):
        assert vcpu.write(TSC_ADJUST, 9, host) == OK
        assert (vcpu.read(TSC_ADJUST), vcpu.clock.offset) == ((OK, 0), 0)


def test_tsc_deadline_is_the_lapics():
    assert HandlerVcpu().write(TSC_DEADLINE, 5) == OK
    assert HandlerVcpu().read(TSC_DEADLINE) == (OK, 0)
    vcpu = with_lapic()
    assert vcpu.write(TSC_DEADLINE, 5) == OK
    assert (vcpu.lapic.tsc_deadline, vcpu.read(TSC_DEADLINE)) == (5, (OK, 5))


@pytest.mark.parametrize("index", [0x800, 0x808, 0x830, 0x8FF])
def test_x2apic_is_the_lapics(index):
    for host in (False, True):
        assert HandlerVcpu().read(index, host) == (INVALID, 0)
        assert HandlerVcpu().write(index, 0, host) == INVALID
        vcpu = with_lapic()
        assert vcpu.read(index, host) == (OK, index)
        assert vcpu.write(index, 7, host) == OK and vcpu.lapic.written == [(index, 7)]
        vcpu.lapic.x2apic = False
        assert (vcpu.read(index, host), vcpu.write(index, 7, host)) == ((INVALID, 0), INVALID)


# Configuration


def test_misc_enable():
    vcpu = HandlerVcpu()
    for bit in (11, 12):
        assert vcpu.write(MISC_ENABLE, 0x1800 ^ 1 << bit) == INVALID
    assert vcpu.write(MISC_ENABLE, 0x1801 | 1 << 7) == OK
    assert vcpu.read(MISC_ENABLE) == (OK, 0x1801)
    assert vcpu.write(MISC_ENABLE, 1 << 7, HOST) == OK
    assert vcpu.read(MISC_ENABLE) == (OK, 1 << 7)


@pytest.mark.parametrize("value", [0, 1, 0x1801, 0x40001])
def test_misc_enable_of_pvm_takes_anything(value):
    vcpu = HandlerVcpu(PVM)
    assert vcpu.write(MISC_ENABLE, value) == OK and vcpu.read(MISC_ENABLE) == (OK, value)


def test_platform_info_can_be_kept_from_guests():
    vcpu = HandlerVcpu()
    vcpu.vm.guest_can_read_platform_info = False
    assert (vcpu.read(PLATFORM_INFO), vcpu.value(PLATFORM_INFO)) == ((INVALID, 0), CPUID_FAULT)


@pytest.mark.parametrize(
    ("profile", "result"),
    [
        (AMD_61, INVALID),
        (PVM, OK), (NEWEST, OK),
    ],
)  # fmt: skip
def test_cpuid_faulting(profile, result):
    vcpu = HandlerVcpu(profile)
    assert vcpu.write(MISC_FEATURES, 1) == OK
    assert vcpu.write(PLATFORM_INFO, 0, HOST) == result
    assert vcpu.write(MISC_FEATURES, 0) == OK
    assert vcpu.write(PLATFORM_INFO, 0, HOST) == OK
    assert vcpu.write(MISC_FEATURES, 1) == (OK if profile == PVM else INVALID)
    assert vcpu.write(MISC_FEATURES, 2) == (OK if profile == PVM else INVALID)


@pytest.mark.parametrize(
    ("profile", "legal"),
    [
        (AMD_61, {0, 1 << 18}), (INTEL_61, {0, 1 << 18}),
        (NEWEST, {0, 1 << 18, 1 << 24, 1 << 18 | 1 << 24}),
        (PVM, {0, 1 << 18, 1 << 24, 1 << 18 | 1 << 24}),
    ],
)  # fmt: skip
def test_hwcr(profile, legal):
    for value in (0, 1 << 18, 1 << 24, 1 << 18 | 1 << 24, 1 << 35, 1):
        vcpu = HandlerVcpu(profile)
        assert vcpu.write(HWCR, value | 0x148) == (OK if value in legal else INVALID)
        assert vcpu.value(HWCR) == (value if value in legal else 0)


# What hangs on CPUID


@pytest.mark.parametrize(
    ("index", "feature"),
    [(ARCH_CAPABILITIES, "arch_capabilities"), (PERF_CAPABILITIES, "pdcm")],
)
@pytest.mark.parametrize(
    ("profile", "failure"),
    [(AMD_61, INVALID), (INTEL_61, INVALID), (NEWEST, UNSUPPORTED), (PVM, UNSUPPORTED)],
)
def test_feature_msrs(index, feature, profile, failure):
    without = HandlerVcpu(profile)
    assert without.read(index)[0] == without.write(index, 0) == failure
    host = UNSUPPORTED if failure == UNSUPPORTED else OK
    assert without.read(index, HOST)[0] == without.write(index, 0, HOST) == host
    having = HandlerVcpu(profile, feature)
    assert having.read(index)[0] == having.write(index, 0, HOST) == OK
    assert having.read(index) == (OK, 0)
    assert having.write(index, 0) != OK
    assert having.write(index, 0) == failure


@pytest.mark.parametrize(("profile", "value"), [(AMD_61, 0x71), (NEWEST, 0x71), (PVM, 0)])
def test_arch_capabilities_are_the_hosts_at_first(profile, value):
    assert HandlerVcpu(profile, "arch_capabilities").read(ARCH_CAPABILITIES) == (OK, value)


def test_perf_capabilities_are_those_of_no_pmu():
    assert HandlerVcpu(NEWEST, "pdcm").write(PERF_CAPABILITIES, 1, HOST) == INVALID


@pytest.mark.parametrize(
    ("profile", "guest", "host"),
    [(AMD_61, INVALID, OK), (NEWEST, UNSUPPORTED, UNSUPPORTED), (PVM, UNSUPPORTED, UNSUPPORTED)],
)
def test_xss_reads_and_writes_differ(profile, guest, host):
    without = HandlerVcpu(profile)
    assert (without.read(XSS), without.write(XSS, 0)) == ((INVALID, 0), guest)
    assert (without.read(XSS, HOST), without.write(XSS, 0, HOST)) == ((OK, 0), host)
    having = HandlerVcpu(profile, "xsaves")
    assert (having.read(XSS), having.write(XSS, 0), having.write(XSS, 1)) == ((OK, 0), OK, INVALID)


@every_kvm
@pytest.mark.parametrize("index", [XFD, XFD + 1])
def test_xfd(profile, index):
    vcpu = HandlerVcpu(profile)
    assert (vcpu.read(index), vcpu.write(index, 0)) == ((INVALID, 0), INVALID)
    assert (vcpu.read(index, HOST), vcpu.write(index, 0, HOST)) == ((OK, 0), OK)
    having = HandlerVcpu(profile, "xfd")
    assert (having.read(index), having.write(index, 0), having.write(index, 1, HOST)) == (
        (OK, 0), OK, INVALID,
    )  # fmt: skip


@every_kvm
@pytest.mark.parametrize("index", [0xC0010140, 0xC0010141])
def test_osvw(profile, index):
    for host in (False, True):
        without = HandlerVcpu(profile)
        assert (without.read(index, host), without.write(index, 0, host)) == ((INVALID, 0), INVALID)
        having = HandlerVcpu(profile, "osvw")
        assert having.write(index, 3, host) == OK and having.read(index, host) == (OK, 3)


def test_every_handler_answers_whoever_asks():
    for name in PROFILES:
        for entries in ((), ("x2apic", "lm", "osvw", "xfd", "xsaves", "arch_capabilities")):
            vcpu = HandlerVcpu(name, *entries)
            for host in (False, True):
                for index in vcpu._handlers.read:
                    result, value = vcpu.read(index, host)
                    assert 0 <= value <= U64 and (result == OK or value == 0)
                for index in vcpu._handlers.write:
                    assert vcpu.write(index, U64, host) in (OK, INVALID, UNSUPPORTED)
                    assert vcpu.write(index, 0, host) in (OK, INVALID, UNSUPPORTED)
