# SPDX-License-Identifier: Apache-2.0
"""RDMSR and WRMSR: who is asked, what the kvm_run page says, and how the instruction ends."""

import pytest

from kvmsr.backend.soft.msr import path
from kvmsr.backend.soft.msr.vcpu import RAX, RCX, RDX, RIP
from kvmsr.backend.soft.profile import PROFILES
from tests.backend.soft.msr.scripted import (
    BASE,
    EFER,
    FILTER,
    GP,
    INVAL,
    LSTAR,
    RDMSR,
    STALE,
    TSC_AUX,
    TSC_DEADLINE,
    UNKNOWN,
    WRMSR,
    X2APIC_ICR,
    Lapic,
    Vcpu,
    X,
    make_filter,
    soil,
)

VMX, SVM, EMULATOR = "linux-6.1-intel", "linux-6.18-amd", "pvm"
EVERYWHERE = pytest.mark.parametrize("profile", PROFILES)


def soiled(profile, **switches):
    vcpu = Vcpu(profile, **switches)
    soil(vcpu)
    return vcpu


# The record


@pytest.mark.parametrize("profile", (VMX, SVM, EMULATOR))
@pytest.mark.parametrize("is_write", (False, True))
def test_an_exit_says_what_is_asked_and_nothing_else(profile, is_write):
    vcpu = soiled(profile)
    index = 0xFFFF_0000_0000_0000 | X
    go_on = vcpu.wrmsr(index, 0x11223344_55667788) if is_write else vcpu.rdmsr(index)
    assert not go_on
    assert vcpu.run.exit_reason == (WRMSR if is_write else RDMSR)
    data = 0x11223344_55667788 if is_write else 0
    record = bytes(8) + UNKNOWN.to_bytes(4, "little") + X.to_bytes(4, "little")
    assert bytes(vcpu.run.exit) == record + data.to_bytes(8, "little") + b"\xa5" * 232


def test_a_write_tells_the_low_halves_alone():
    vcpu = Vcpu()
    vcpu.cpu.regs[RCX], vcpu.cpu.regs[RAX], vcpu.cpu.regs[RDX] = X, STALE | 7, STALE | 9
    assert not path.kvm_emulate_wrmsr(vcpu, 2)
    assert vcpu.msr.data == 9 << 32 | 7


@EVERYWHERE
def test_an_access_that_is_deflected_has_not_happened(profile):
    vcpu = Vcpu(profile)
    vcpu.cpu.regs[RAX] = vcpu.cpu.regs[RDX] = STALE
    before = [*vcpu.cpu.regs[:RIP], BASE]
    before[RCX] = X
    assert not vcpu.rdmsr()
    assert (vcpu.cpu.regs, vcpu.exceptions, vcpu.skips) == (before, [], [])


# Who is asked

CAUSES = {
    INVAL: lambda vcpu: vcpu.wrmsr(EFER, 1 << 63),
    UNKNOWN: lambda vcpu: vcpu.rdmsr(X),
    FILTER: lambda vcpu: vcpu.deny(TSC_AUX) or vcpu.rdmsr(TSC_AUX),
}


@pytest.mark.parametrize("reason", CAUSES)
@pytest.mark.parametrize("mask", range(8))
def test_the_mask_decides_between_an_exit_and_gp(mask, reason):
    vcpu = Vcpu()
    vcpu.vm.user_space_msr_mask = mask
    deflected = not CAUSES[reason](vcpu)
    assert deflected == bool(mask & reason)
    assert vcpu.msr.reason == (reason if deflected else 0)
    assert vcpu.exceptions == ([] if deflected else [GP])
    assert (vcpu.rip, vcpu.skips) == (BASE, [])
    assert (vcpu.complete_emulation is None) == (not deflected)


@pytest.mark.parametrize("cause", CAUSES.values(), ids=("inval", "unknown", "filter"))
def test_patch_v3_deflects_every_gp_and_gives_no_reason(cause):
    vcpu = soiled("patch-v3")
    vcpu.vm.user_space_msr_mask = vcpu.vm.profile.user_space_msr_mask(1)
    assert not cause(vcpu)
    assert (vcpu.msr.reason, bytes(vcpu.msr.pad)) == (0, bytes(7))


def test_patch_v3_can_be_off():
    vcpu = Vcpu("patch-v3")
    vcpu.vm.user_space_msr_mask = vcpu.vm.profile.user_space_msr_mask(0)
    assert vcpu.rdmsr() and vcpu.exceptions == [GP]


@EVERYWHERE
@pytest.mark.parametrize("index", (X, EFER))
def test_user_mode_gets_gp_and_user_space_never_hears_of_it(profile, index):
    for access in (Vcpu.rdmsr, Vcpu.wrmsr):
        vcpu = Vcpu(profile)
        vcpu.cpu.cpl = 3
        vcpu.deny(index)
        assert access(vcpu, index)
        assert (vcpu.exceptions, vcpu.rip, vcpu.complete_emulation) == ([GP], BASE, None)


def test_a_denied_access_does_not_reach_its_handler():
    vcpu = Vcpu()
    vcpu.deny(LSTAR, EFER)
    assert not vcpu.wrmsr(LSTAR, 0x1234)
    assert (vcpu.msr.reason, vcpu.cpu.held[LSTAR]) == (FILTER, 0)
    assert not vcpu.wrmsr(EFER, 1 << 63)  # illegal, too
    assert vcpu.msr.reason == FILTER
    assert not vcpu.rdmsr(EFER)
    assert vcpu.msr.reason == FILTER


def test_the_filter_knows_reads_from_writes():
    vcpu = Vcpu()
    vcpu.vm.msr_filter = make_filter((1, LSTAR, b"\0"))
    assert vcpu.wrmsr(LSTAR, 8) and not vcpu.rdmsr(LSTAR)
    vcpu.vm.msr_filter = make_filter((2, LSTAR, b"\0"))
    assert vcpu.rdmsr(LSTAR) and not vcpu.wrmsr(LSTAR, 16)


@pytest.mark.parametrize("value", (1 << 47, 1 << 63))
def test_a_non_canonical_lstar_is_inval(value):
    vcpu = Vcpu()
    assert not vcpu.wrmsr(LSTAR, value)
    assert (vcpu.msr.reason, vcpu.cpu.held[LSTAR]) == (INVAL, 0)


def test_ignore_msrs_forgives_the_unknown_alone():
    vcpu = Vcpu(ignore_msrs=True)
    vcpu.cpu.regs[RAX] = vcpu.cpu.regs[RDX] = STALE
    assert vcpu.rdmsr(X) and vcpu.wrmsr(X, 5)
    assert (vcpu.cpu.regs[RDX], vcpu.rip) == (0, BASE + 4)
    for reason in (INVAL, FILTER):
        assert not CAUSES[reason](vcpu)
        assert vcpu.msr.reason == reason


# In the kernel


@EVERYWHERE
def test_what_the_kernel_handles_is_over_at_once(profile):
    vcpu = Vcpu(profile)
    vcpu.cpu.regs[RAX] = vcpu.cpu.regs[RDX] = STALE
    vcpu.cpu.held[LSTAR] = 0xFFFF_FFFF_8000_1000
    assert vcpu.rdmsr(LSTAR, length=3)
    assert (vcpu.cpu.regs[RAX], vcpu.cpu.regs[RDX]) == (0x8000_1000, 0xFFFF_FFFF)
    assert vcpu.wrmsr(LSTAR, 0x7FFF_0000_0000)
    assert vcpu.cpu.held[LSTAR] == 0x7FFF_0000_0000
    assert [rip for rip, _ in vcpu.skips] == [BASE + 3, BASE + 5]
    assert vcpu.complete_emulation is None


def test_a_single_step_ends_in_user_space():
    vcpu = Vcpu()
    vcpu.steps = False
    assert not vcpu.rdmsr(EFER) and not vcpu.wrmsr(LSTAR, 0)
    assert not vcpu.rdmsr(X) and not vcpu.enter()
    assert vcpu.complete_emulation is None


# Completion


@EVERYWHERE
def test_a_read_gets_what_user_space_gives(profile):
    vcpu = Vcpu(profile)
    vcpu.cpu.regs[RAX] = vcpu.cpu.regs[RDX] = STALE
    vcpu.cpu.rflags = 0x246
    assert not vcpu.rdmsr(length=4)
    assert vcpu.enter(data=0x11223344_AABBCCDD)
    assert (vcpu.cpu.regs[RAX], vcpu.cpu.regs[RDX]) == (0xAABBCCDD, 0x11223344)
    assert (vcpu.skips, vcpu.exceptions) == ([(BASE + 4, 0x246)], [])


@EVERYWHERE
def test_a_write_changes_nothing_but_rip(profile):
    vcpu = Vcpu(profile)
    assert not vcpu.wrmsr(X, 0x1_0000_0002)
    before = [*vcpu.cpu.regs]
    assert vcpu.enter(data=99)
    assert vcpu.cpu.regs == [*before[:RIP], BASE + 2]


@EVERYWHERE
@pytest.mark.parametrize("error", (1, 0x80, 0xFF))
@pytest.mark.parametrize("access", (Vcpu.rdmsr, Vcpu.wrmsr))
def test_an_error_is_gp_at_the_instruction(profile, error, access):
    vcpu = Vcpu(profile)
    assert not access(vcpu)
    before = [*vcpu.cpu.regs]
    assert vcpu.enter(error=error, data=STALE)
    assert (vcpu.exceptions, vcpu.skips, vcpu.cpu.regs) == ([GP], [], before)


def test_two_accesses_are_two_exits():
    vcpu = Vcpu()
    assert not vcpu.rdmsr(X)
    assert vcpu.enter(data=1)
    assert not vcpu.rdmsr(X + 1)
    assert vcpu.msr.index == X + 1
    assert vcpu.enter(data=2)
    assert (vcpu.cpu.regs[RAX], vcpu.rip) == (2, BASE + 4)


def test_mask_and_filter_do_not_touch_what_is_pending():
    vcpu = Vcpu()
    assert not vcpu.rdmsr()
    vcpu.vm.user_space_msr_mask = 0
    vcpu.deny(X)
    assert vcpu.enter(data=7)
    assert vcpu.cpu.regs[RAX] == 7 and vcpu.exceptions == []
    assert vcpu.rdmsr() and vcpu.exceptions == [GP]


def test_what_user_space_writes_elsewhere_is_ignored():
    vcpu = Vcpu()
    assert not vcpu.rdmsr()
    vcpu.run.exit_reason, vcpu.msr.index, vcpu.msr.reason = WRMSR, EFER, 0
    vcpu.msr.pad[:] = [0xFF] * 7
    assert vcpu.enter(data=7)
    assert (vcpu.cpu.regs[RAX], vcpu.rip, vcpu.exceptions) == (7, BASE + 2, [])


@pytest.mark.parametrize(
    ("profile", "emulated", "rip", "flags"),
    (
        (VMX, False, 0x5002, 0x93),  # the length is added to what RIP is then
        (SVM, False, BASE + 2, 0x93),  # the CPU has told the next RIP
        (EMULATOR, False, BASE + 2, 0x46),  # the emulator has put both by
        (VMX, True, BASE + 2, 0x46),
        (SVM, True, BASE + 2, 0x46),
    ),
)
@pytest.mark.parametrize("access", (Vcpu.rdmsr, Vcpu.wrmsr))
def test_registers_set_while_pending(profile, emulated, rip, flags, access):
    vcpu = Vcpu(profile)
    vcpu.cpu.rflags = 0x46
    assert not access(vcpu, emulated=emulated)
    vcpu.cpu.regs[RIP], vcpu.cpu.rflags, vcpu.cpu.regs[3] = 0x5000, 0x93, 77
    assert vcpu.enter(data=0)
    assert (vcpu.skips, vcpu.cpu.regs[3]) == ([(rip, flags)], 77)


@EVERYWHERE
def test_gp_comes_where_rip_is_then(profile):
    vcpu = Vcpu(profile)
    assert not vcpu.rdmsr()
    vcpu.cpu.regs[RIP], vcpu.cpu.rflags = 0x5000, 0x93
    assert vcpu.enter(error=1)
    assert (vcpu.rip, vcpu.cpu.rflags, vcpu.exceptions) == (0x5000, 0x93, [GP])


@pytest.mark.parametrize("profile", (VMX, SVM, EMULATOR))
@pytest.mark.parametrize(
    ("long_code", "rip", "after"),
    (
        (False, 0xFFFF_FFFE, 0),
        (True, 0xFFFF_FFFE, 0x1_0000_0000),
        (True, (1 << 64) - 1, 1),
    ),
)
def test_rip_wraps(profile, long_code, rip, after):
    for index in (X, EFER):
        vcpu = Vcpu(profile)
        vcpu.cpu.long_code, vcpu.cpu.regs[RIP] = long_code, rip
        assert vcpu.rdmsr(index) or vcpu.enter(data=0)
        assert vcpu.rip == after


# The fast path


def test_the_fast_path_asks_no_filter():
    vcpu = Vcpu(VMX, lapic=Lapic())
    vcpu.deny(TSC_DEADLINE)
    assert vcpu.wrmsr(TSC_DEADLINE, 123)
    assert (vcpu.lapic.tsc_deadline, vcpu.rip) == (123, BASE + 2)
    assert not vcpu.rdmsr(TSC_DEADLINE)  # reads are not fast


@pytest.mark.parametrize(
    ("profile", "lapic", "emulated"),
    (
        ("linux-6.1-amd", Lapic(), False),
        (EMULATOR, Lapic(), False),
        (VMX, None, False),
        (VMX, Lapic(), True),
    ),
)
def test_where_there_is_no_fast_path(profile, lapic, emulated):
    vcpu = Vcpu(profile, lapic=lapic)
    vcpu.deny(TSC_DEADLINE)
    assert not vcpu.wrmsr(TSC_DEADLINE, 123, emulated=emulated)
    assert vcpu.msr.reason == FILTER and (lapic is None or not lapic.tsc_deadline)


def test_the_fast_path_is_for_kernel_mode_too():
    vcpu = Vcpu(VMX, lapic=Lapic())
    vcpu.cpu.cpl = 3
    assert vcpu.wrmsr(TSC_DEADLINE, 123) and vcpu.exceptions == [GP]
    assert not vcpu.lapic.tsc_deadline


@pytest.mark.parametrize(
    ("icr", "is_fast"),
    (
        (0x0000_0003_0000_00F0, True),
        (0x0000_0003_0004_00F0, False),  # to itself
        (0x0000_0003_0000_08F0, False),  # logical
        (0x0000_0003_0000_04F0, False),  # NMI
        (0xFFFF_FFFF_0000_00F0, False),  # to all
    ),
)
def test_plain_ipis_are_fast(monkeypatch, icr, is_fast):
    slow = []
    real = path.kvm_set_msr_with_filter
    monkeypatch.setattr(
        path, "kvm_set_msr_with_filter", lambda *access: slow.append(access) or real(*access)
    )
    vcpu = Vcpu(VMX, lapic=Lapic())
    assert vcpu.wrmsr(X2APIC_ICR, icr)
    assert (vcpu.lapic.written, bool(slow)) == ([(X2APIC_ICR, icr)], not is_fast)


def test_an_ipi_outside_of_x2apic_mode_is_deflected():
    vcpu = Vcpu(VMX, lapic=Lapic(x2apic=False))
    assert not vcpu.wrmsr(X2APIC_ICR, 0xF0)
    assert (vcpu.msr.reason, vcpu.msr.data) == (INVAL, 0xF0)
