# SPDX-License-Identifier: Apache-2.0
"""What kvm_amd, kvm_intel and kvm_pvm do before the common handlers, and Hyper-V's range."""

import pytest

from kvmsr.backend.soft.msr.mce import setup_mce
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

SPEC_CTRL, PRED_CMD, FLUSH_CMD, FEAT_CTL, DEBUGCTL, TSX_CTRL = 0x48, 0x49, 0x10B, 0x3A, 0x1D9, 0x122
TSC_RATIO, VM_CR, VM_IGNNE, VIRT_SPEC_CTRL = 0xC0000104, 0xC0010114, 0xC0010115, 0xC001011F
VM_HSAVE_PA, DE_CFG, IC_CFG, MCG_EXT_CTL = 0xC0010117, 0xC0011029, 0xC0011021, 0x4D0
SYSENTER_ESP, SYSENTER_EIP = 0x175, 0x176
ONE = 1 << 32


@pytest.mark.parametrize("profile", [AMD_61, INTEL_61, NEWEST])
def test_spec_ctrl_and_pred_cmd(profile):
    without = HandlerVcpu(profile)
    assert (without.read(SPEC_CTRL), without.write(SPEC_CTRL, 0)) == ((INVALID, 0), INVALID)
    assert without.write(SPEC_CTRL, 1, HOST) == OK and without.value(SPEC_CTRL) == 1
    assert without.write(PRED_CMD, 0) == INVALID
    having = HandlerVcpu(profile, "spec_ctrl")
    assert [having.write(SPEC_CTRL, value) for value in (7, 1 << 40)] == [OK, INVALID]
    assert having.read(SPEC_CTRL) == (OK, 7)
    having = HandlerVcpu(profile, "pred_cmd")
    assert [having.write(PRED_CMD, value) for value in (0, 1, 2)] == [OK, OK, INVALID]
    assert having.read(PRED_CMD) == (UNSUPPORTED, 0)


def test_flush_cmd_is_newer():
    assert HandlerVcpu(AMD_61, "flush_l1d").write(FLUSH_CMD, 1) == UNSUPPORTED
    assert HandlerVcpu(NEWEST).write(FLUSH_CMD, 1) == INVALID
    having = HandlerVcpu(NEWEST, "flush_l1d")
    assert [having.write(FLUSH_CMD, value) for value in (0, 1, 2)] == [OK, OK, INVALID]
    assert having.read(FLUSH_CMD, HOST) == (UNSUPPORTED, 0)


# kvm_amd


@pytest.mark.parametrize("index", [SYSENTER_ESP, SYSENTER_EIP])
@pytest.mark.parametrize(
    ("profile", "vendor", "kept"),
    [
        (NEWEST, "AuthenticAMD", 0x89ABCDEF), (NEWEST, "GenuineIntel", 0x123489ABCDEF),
        (INTEL_61, "GenuineIntel", 0x123489ABCDEF), (PVM, "AuthenticAMD", 0x123489ABCDEF),
    ],
)  # fmt: skip
def test_amd_keeps_half_of_sysenter(index, profile, vendor, kept):
    vcpu = HandlerVcpu(profile, cpuid_entries=cpuid(vendor=vendor))
    assert vcpu.write(index, 0x123489ABCDEF) == OK
    assert vcpu.read(index) == (OK, kept)


@pytest.mark.parametrize(
    "profile",
    [
        AMD_61, NEWEST,
        PVM,
    ],
)  # fmt: skip
def test_tsc_ratio_is_1_to_the_host(profile):
    vcpu = HandlerVcpu(profile)
    assert (vcpu.read(TSC_RATIO, HOST), vcpu.read(TSC_RATIO)) == ((OK, ONE), (INVALID, 0))
    written = [vcpu.write(TSC_RATIO, value, HOST) for value in (0, ONE, ONE >> 1)]
    assert written == [OK, OK, INVALID]
    assert vcpu.write(TSC_RATIO, ONE) == INVALID
    assert vcpu.value(TSC_RATIO) == ONE


@pytest.mark.parametrize("profile", [AMD_61, NEWEST])
def test_vm_hsave_pa(profile):
    vcpu = HandlerVcpu(profile, "nx")
    for value, result in ((0x1000, OK), (0x1234, INVALID), (1 << 40, INVALID)):
        assert vcpu.write(VM_HSAVE_PA, value) == result
    assert vcpu.value(VM_HSAVE_PA) == 0x1000
    assert vcpu.write(VM_HSAVE_PA, 0x2345, HOST) == OK and vcpu.value(VM_HSAVE_PA) == 0x2000


@pytest.mark.parametrize("profile", [INTEL_61, PVM])
def test_vm_hsave_pa_elsewhere_is_dropped(profile):
    vcpu = HandlerVcpu(profile)
    assert vcpu.write(VM_HSAVE_PA, 0x1234) == OK and vcpu.read(VM_HSAVE_PA) == (OK, 0)


def test_virt_spec_ctrl():
    without = HandlerVcpu()
    assert without.read(VIRT_SPEC_CTRL) == (INVALID, 0)
    assert without.write(VIRT_SPEC_CTRL, 0) == INVALID
    assert without.write(VIRT_SPEC_CTRL, 4, HOST) == OK and without.value(VIRT_SPEC_CTRL) == 4
    having = HandlerVcpu(NEWEST, "virt_ssbd")
    assert [having.write(VIRT_SPEC_CTRL, value) for value in (4, 1)] == [OK, INVALID]


def test_de_cfg_is_not_the_guests_to_change():
    vcpu = HandlerVcpu()
    assert vcpu.write(DE_CFG, 2, HOST) == OK
    assert [vcpu.write(DE_CFG, value) for value in (2, 0, 3)] == [OK, INVALID, INVALID]
    assert vcpu.write(DE_CFG, 3, HOST) == INVALID
    assert vcpu.read(DE_CFG) == (OK, 2)


def test_vm_cr():
    vcpu = HandlerVcpu()
    assert vcpu.write(VM_CR, 0x20) == INVALID
    assert vcpu.write(VM_CR, 0x1F) == OK and vcpu.read(VM_CR) == (OK, 0x1F)
    assert vcpu.write(VM_CR, 0) == OK and vcpu.read(VM_CR) == (OK, 0x18)  # SVMDIS is for good
    assert (vcpu.read(VM_IGNNE), vcpu.write(VM_IGNNE, 1)) == ((UNSUPPORTED, 0), OK)


def test_debugctl_of_amd_drops_pins():
    vcpu = HandlerVcpu()
    assert vcpu.write(DEBUGCTL, 0x3F) == OK and vcpu.read(DEBUGCTL) == (OK, 3)
    assert vcpu.write(DEBUGCTL, 0x40) == INVALID


def test_ic_cfg_depends_on_the_cpu():
    assert HandlerVcpu().read(IC_CFG) == (UNSUPPORTED, 0)
    assert HandlerVcpu(NEWEST, "nx").read(IC_CFG) == (OK, 0)


@pytest.mark.parametrize("index", [VM_CR, VM_IGNNE, DE_CFG, IC_CFG])
@pytest.mark.parametrize("profile", [INTEL_61, PVM])
def test_these_are_kvm_amds_alone(profile, index):
    vcpu = HandlerVcpu(profile, "nx")
    assert (vcpu.read(index), vcpu.write(index, 0)) == ((UNSUPPORTED, 0), UNSUPPORTED)


# kvm_intel


def test_feat_ctl_locks():
    vcpu = HandlerVcpu(INTEL_61)
    assert [vcpu.write(FEAT_CTL, value) for value in (4, 0, 1, 0, 1)] == [
        INVALID, OK, OK, INVALID, INVALID,
    ]  # fmt: skip
    assert vcpu.write(FEAT_CTL, 0, HOST) == OK and vcpu.read(FEAT_CTL) == (OK, 0)
    assert HandlerVcpu(AMD_61).read(FEAT_CTL) == (UNSUPPORTED, 0)


def test_local_machine_checks():
    vcpu = HandlerVcpu(INTEL_61)
    assert (vcpu.read(MCG_EXT_CTL), vcpu.write(MCG_EXT_CTL, 1)) == ((INVALID, 0), INVALID)
    assert vcpu.read(MCG_EXT_CTL, HOST) == (OK, 0)
    assert vcpu.write(FEAT_CTL, 1 << 20, HOST) == INVALID
    setup_mce(vcpu, 1 << 27 | 10)
    assert vcpu.write(FEAT_CTL, 1 << 20 | 1) == OK
    assert (vcpu.write(MCG_EXT_CTL, 1), vcpu.write(MCG_EXT_CTL, 2)) == (OK, INVALID)
    assert vcpu.read(MCG_EXT_CTL) == (OK, 1)


@pytest.mark.parametrize("index", [0xD90, 0x560, 0x570, 0x572, 0x580, 0x587])
def test_what_intel_knows_and_does_not_offer(index):
    for host in (False, True):
        vcpu = HandlerVcpu(INTEL_61)
        assert (vcpu.read(index, host), vcpu.write(index, 0, host)) == ((INVALID, 0), INVALID)
        assert HandlerVcpu(AMD_61).read(index, host) == (UNSUPPORTED, 0)


@pytest.mark.parametrize(("index", "legal", "illegal"), [(0xE1, 0xFFFFFFFD, 2), (0x8C, U64, None)])
def test_what_only_the_host_may_touch_on_intel(index, legal, illegal):
    vcpu = HandlerVcpu(INTEL_61)
    assert (vcpu.read(index), vcpu.write(index, 0)) == ((INVALID, 0), INVALID)
    assert vcpu.write(index, legal, HOST) == OK and vcpu.value(index) == legal
    if illegal is not None:
        assert vcpu.write(index, illegal, HOST) == INVALID


def test_tsx_ctrl_of_intel():
    vcpu = HandlerVcpu(INTEL_61)
    assert (vcpu.read(TSX_CTRL), vcpu.read(TSX_CTRL, HOST)) == ((INVALID, 0), (UNSUPPORTED, 0))


@pytest.mark.parametrize("index", [0x480, 0x491])
def test_vmx_capabilities_without_nested_guests(index):
    vcpu = HandlerVcpu(INTEL_61)
    assert (vcpu.read(index), vcpu.read(index, HOST)) == ((INVALID, 0), (INVALID, 0))
    assert vcpu.write(index, 0, HOST) == INVALID
    for other in (AMD_61, NEWEST, PVM):
        assert HandlerVcpu(other).read(index) == (UNSUPPORTED, 0)


def test_debugctl_of_intel_drops_lbr_and_btf():
    vcpu = HandlerVcpu(INTEL_61)
    assert [vcpu.write(DEBUGCTL, value) for value in (3, 4)] == [OK, INVALID]
    assert vcpu.read(DEBUGCTL) == (OK, 0)


# kvm_pvm


@pytest.mark.parametrize("index", [SPEC_CTRL, TSX_CTRL, DEBUGCTL, VIRT_SPEC_CTRL])
def test_pvm_swallows(index):
    for host in (False, True):
        vcpu = HandlerVcpu(PVM)
        assert vcpu.write(index, U64, host) == OK and vcpu.read(index, host) == (OK, 0)


@pytest.mark.parametrize("index", [PRED_CMD, FLUSH_CMD])
def test_pvm_swallows_commands(index):
    vcpu = HandlerVcpu(PVM)
    assert (vcpu.write(index, U64), vcpu.read(index)) == (OK, (UNSUPPORTED, 0))


# Hyper-V


@pytest.mark.parametrize(
    "index", [0x40000000, 0x40000002, 0x4000009F, 0x400000B7, 0x400000F1, 0x40000105, 0x40000108]
)
def test_hyperv_is_illegal_where_it_is_known(index):
    for profile in (AMD_61, INTEL_61, NEWEST):
        vcpu = HandlerVcpu(profile)
        assert (vcpu.read(index), vcpu.write(index, 0)) == ((INVALID, 0), INVALID)
        assert (vcpu.read(index, HOST)[0], vcpu.write(index, 0, HOST)) == (OK, OK)
    without = HandlerVcpu(PVM)
    assert (without.read(index), without.write(index, 0, HOST)) == ((UNSUPPORTED, 0), UNSUPPORTED)


@pytest.mark.parametrize("index", [0x40000080, 0x4000009F, 0x400000B0, 0x400000B7])
def test_without_a_synic_the_host_may_only_clear_its_msrs(index):
    vcpu = HandlerVcpu(AMD_61)
    assert vcpu.write(index, 1, HOST) == INVALID
    assert vcpu.write(index, 0, HOST) == OK
    assert vcpu.value(index) == 0


@pytest.mark.parametrize(
    ("index", "profile"),
    [(0x400000F6, NEWEST), (0x400000FE, AMD_61), (0x40000109, NEWEST), (0x40000118, AMD_61)],
)
def test_gaps_in_hypervs_range(index, profile):
    assert HandlerVcpu(profile).read(index, HOST) == (UNSUPPORTED, 0)
    assert HandlerVcpu(NEWEST).read(0x40000118) == (INVALID, 0)


@pytest.mark.parametrize(("profile", "length"), [(AMD_61, 3), (NEWEST, 3), (INTEL_61, 0), (PVM, 0)])
def test_amd_tells_guests_that_errata_are_worked_around(profile, length):
    assert HandlerVcpu(profile, "osvw").read(0xC0010140) == (OK, length)
