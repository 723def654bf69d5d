# SPDX-License-Identifier: Apache-2.0
"""Historical defects of KVM's MSR path: each shows, and only where it should."""

import pytest

from kvmsr.backend.soft.msr import path
from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.vcpu import RAX, RIP
from tests.backend.soft.msr.scripted import (
    BASE,
    EFER,
    FILTER,
    GP,
    RDMSR,
    TSC_AUX,
    UNKNOWN,
    Vcpu,
    X,
    soil,
)  # fmt: skip
from tests.backend.soft.mutants import MUTANTS, mutated

VMX, SVM, EMULATOR = "linux-6.1-intel", "linux-6.18-amd", "pvm"
TF = 1 << 8


def soiled():
    vcpu = Vcpu(SVM)
    soil(vcpu)
    return vcpu


def unfiltered():
    """The emulator's own reads are not the guest's RDMSR."""
    vcpu = Vcpu(EMULATOR)
    vcpu.cpu.held[EFER] = 0xD01
    vcpu.deny(EFER)
    assert path.emulator_get_msr(vcpu, EFER) == (MsrRet.OK, 0xD01)
    assert path.emulator_get_msr(vcpu, X) == (MsrRet.UNSUPPORTED, 0)
    assert vcpu.complete_emulation is None and vcpu.run.exit_reason == 0


def faults_at_the_instruction():
    for profile in (VMX, SVM, EMULATOR):
        vcpu = Vcpu(profile)
        vcpu.rdmsr()
        vcpu.enter(error=1)
        assert (vcpu.rip, vcpu.skips, vcpu.exceptions) == (BASE, [], [GP])


def clears_data():
    vcpu = soiled()
    vcpu.rdmsr()
    assert vcpu.msr.data == 0


def clears_padding():
    vcpu = soiled()
    vcpu.rdmsr()
    assert bytes(vcpu.msr.pad) == bytes(7)


def completes_once():
    vcpu = Vcpu(SVM)
    vcpu.rdmsr()
    vcpu.enter(data=1)
    vcpu.cpu.regs[RIP] = 0x9000
    vcpu.enter(data=2)
    assert (vcpu.cpu.regs[RAX], vcpu.rip) == (1, 0x9000)


def restores_what_the_emulator_put_by():
    vcpu = Vcpu(EMULATOR)
    vcpu.rdmsr()
    vcpu.cpu.regs[RIP] = 0x5000
    vcpu.enter()
    assert vcpu.rip == BASE + 2


def restores_flags():
    vcpu = Vcpu(EMULATOR)
    vcpu.rdmsr()
    vcpu.cpu.rflags |= TF
    vcpu.enter()
    assert vcpu.cpu.rflags == 2


DEFECTS = (
    ("M1", faults_at_the_instruction),
    ("M2", clears_data),
    ("M3", clears_padding),
    ("M4", completes_once),
    ("M5", restores_what_the_emulator_put_by),
    ("M5", restores_flags),
    ("M6", unfiltered),
)


@pytest.mark.parametrize(("mutant", "check"), DEFECTS)
def test_a_defect_is_told_from_what_is_right(mutant, check):
    check()
    with pytest.raises(AssertionError), mutated(mutant):
        check()
    for other in MUTANTS.keys() - {mutant}:
        with mutated(other):
            check()  # it is the only one that shows


def test_a_defect_stays_in_its_place():
    vcpu = soiled()
    with mutated("M2", "M3"):
        assert not vcpu.wrmsr(X, 5)
    assert (vcpu.msr.error, vcpu.msr.data, vcpu.msr.reason) == (0, 5, UNKNOWN)
    assert bytes(vcpu.msr.pad) == b"\xa5" * 7


def test_m6_deflects_what_the_guest_did_not_ask():
    vcpu = Vcpu(EMULATOR)
    vcpu.deny(TSC_AUX)
    with mutated("M6"):
        assert path.emulator_get_msr(vcpu, TSC_AUX) == (MsrRet.FILTERED, 0)
    assert (vcpu.run.exit_reason, vcpu.msr.index, vcpu.msr.reason) == (RDMSR, TSC_AUX, FILTER)
