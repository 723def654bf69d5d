"""Hyper-V's hypercalls: results, access, sets of virtual processors, and those of user space."""

import struct

import pytest

from kvmsr.abi import Cap, ExitReason, cpu
from kvmsr.kvm import exits
from tests.backend.soft.hyperv import windows
from tests.backend.soft.hyperv.windows import PAGE, call, enforce
from tests.conformance import code
from tests.conformance.outcome import DONE, UD

FLUSH_SPACE, FLUSH_LIST, LONG_SPIN, SEND_IPI = 0x2, 0x3, 0x8, 0xB
FLUSH_SPACE_EX, SEND_IPI_EX, POST_MESSAGE, SIGNAL_EVENT = 0x13, 0x15, 0x5C, 0x5D
RESET_DEBUG, QUERY_CAPABILITIES = 0x6B, 0x8001
FAST = 1 << 16
INVALID_CODE, INVALID_INPUT, INVALID_ALIGNMENT, DENIED, OPERATION_DENIED = 2, 3, 4, 6, 8
VECTOR = 0x41
IRR = 0x200


def banks(count):
    return count << 17


def repeats(count):
    return count << 32


@pytest.fixture
def guests(world):
    """Return a function that gives the vCPUs of a guest that has introduced itself."""

    def make(count=1, profile="linux-6.1-amd", mode="long", **leaves):
        kvm = world(profile)
        made = kvm.cpus(count, mode, irqchip=True, cpuid=windows.cpuid(kvm, **leaves))
        for each in made:
            each.vcpu.enable_cap(Cap.HYPERV_SYNIC2, 0)
            each.set(0x1B, each.get(0x1B) | 1 << 11)
        made[0].set(windows.OS_ID, windows.LINUX)
        return made

    return make


def requested(made):
    """Return whether the vector waits in a vCPU's local APIC."""
    regs = bytes(made.vcpu.get_lapic().regs)
    return bool(regs[IRR + 0x10 * (VECTOR // 32) + VECTOR % 32 // 8] >> VECTOR % 8 & 1)


def test_without_an_os_id_they_are_kvms(guests):
    (made,) = guests()
    assert call(made, 0xBEEF) == (DONE, INVALID_CODE)
    made.set(windows.OS_ID, 0)
    assert call(made, 0xBEEF)[1] == (1 << 64) - 1000  # ENOSYS of KVM's


def test_the_other_vendors_instruction_does(guests):
    (made,) = guests()
    assert call(made, LONG_SPIN, instruction=windows.VMCALL) == (DONE, 0)


def test_user_mode_may_not(guests):
    (made,) = guests(mode="user")
    assert call(made, LONG_SPIN)[0] == UD


def test_the_control_word_is_checked(guests):
    (made,) = guests()
    assert call(made, LONG_SPIN | 1 << 27)[1] == INVALID_INPUT
    assert call(made, LONG_SPIN | repeats(1))[1] == INVALID_INPUT
    assert call(made, FLUSH_LIST)[1] == INVALID_INPUT  # it takes repeats
    assert call(made, FLUSH_LIST | repeats(2), PAGE)[1] == repeats(2)  # all are done
    assert call(made, FLUSH_SPACE | banks(1), PAGE)[1] == INVALID_INPUT


def test_enforced_cpuid_decides(guests):
    (made,) = guests(without=[windows.ENLIGHTENMENTS])
    assert call(made, FLUSH_SPACE, PAGE)[1] == 0
    enforce(made)
    for control in (FLUSH_SPACE, FLUSH_SPACE_EX, SEND_IPI, SEND_IPI_EX, LONG_SPIN):
        assert call(made, control, PAGE)[1] == DENIED
    (made,) = guests(without=[windows.FEATURES])
    enforce(made)
    assert call(made, POST_MESSAGE)[1] == DENIED
    assert call(made, RESET_DEBUG)[1] == DENIED
    assert call(made, FLUSH_SPACE | FAST)[0] == UD  # by XMM registers
    (made,) = guests(without=[windows.FEATURES, windows.DEBUGGER])
    enforce(made)
    assert call(made, RESET_DEBUG)[1] == INVALID_CODE


def test_flushing_makes_a_changed_translation_visible(guests):
    (made,) = guests()
    made.put(0xC000, b"old!")
    load = b"\x8b\x03"  # mov (%rbx), %eax
    tables = 0xD000
    made.put(tables, struct.pack("<512Q", *(n << 12 | 7 for n in range(512))))
    made.put(0x4000, struct.pack("<Q", tables | 7))  # small pages from now on
    sregs = made.vcpu.get_sregs()
    made.vcpu.set_sregs(sregs)
    made.load(load + code.MARKER, rbx=0xC000)
    assert made.finish() == DONE
    made.put(0xE000, b"new!")
    made.put(tables + 8 * 0xC, struct.pack("<Q", 0xE007))
    assert call(made, FLUSH_SPACE, PAGE)[1] == 0
    made.load(load + code.MARKER, rbx=0xC000)
    assert made.finish() == DONE
    assert made.regs.rax.to_bytes(8, "little")[:4] == b"new!"


@pytest.mark.parametrize("fast", [False, True])
def test_an_ipi_goes_to_those_in_the_mask(guests, fast):
    made = guests(3)
    for each in made:
        each.vcpu.set_lapic(enabled(each))
    if fast:
        result = call(made[0], SEND_IPI | FAST, VECTOR, 0b110)
    else:
        made[0].put(PAGE, struct.pack("<IIQ", VECTOR, 0, 0b110))
        result = call(made[0], SEND_IPI, PAGE)
    assert result == (DONE, 0)
    assert [requested(each) for each in made] == [False, True, True]


def enabled(made):
    """Return the registers of a local APIC that is enabled by software."""
    lapic = made.vcpu.get_lapic()
    lapic.regs[0xF1] = 1
    return lapic


def test_or_in_a_sparse_set_by_vp_index(guests):
    made = guests(3)
    for each in made:
        each.vcpu.set_lapic(enabled(each))
    made[2].set(windows.VP_INDEX, 64 + 5)
    made[0].put(PAGE, struct.pack("<IIQQQQ", VECTOR, 0, 0, 0b11, 1 << 1, 1 << 5))
    assert call(made[0], SEND_IPI_EX | banks(1), PAGE)[1] == INVALID_INPUT  # two are there
    assert call(made[0], SEND_IPI_EX | banks(2), PAGE) == (DONE, 0)
    assert [requested(each) for each in made] == [False, True, True]
    made[0].put(PAGE, struct.pack("<IIQQ", VECTOR, 0, 1, 0))  # all
    assert call(made[0], SEND_IPI_EX, PAGE) == (DONE, 0)
    assert requested(made[0])


def test_a_set_in_xmm_registers(guests):
    made = guests(2)
    for each in made:
        each.vcpu.set_lapic(enabled(each))
    fpu = made[0].vcpu.get_fpu()
    fpu.xmm[0][:] = struct.pack("<QQ", 1, 0b10)  # the valid banks, and the first
    made[0].vcpu.set_fpu(fpu)
    assert call(made[0], SEND_IPI_EX | FAST | banks(1), VECTOR, 0) == (DONE, 0)
    assert [requested(each) for each in made] == [False, True]


def test_vectors_below_16_are_invalid(guests):
    (made,) = guests()
    assert call(made, SEND_IPI | FAST, 15, 1)[1] == INVALID_INPUT
    assert call(made, SEND_IPI | FAST, 1 << 32 | VECTOR, 1)[1] == INVALID_INPUT


@pytest.mark.parametrize("control", [POST_MESSAGE, SIGNAL_EVENT | FAST])
def test_messages_and_events_are_for_user_space(guests, control):
    (made,) = guests()
    made.load(windows.VMMCALL + code.MARKER, rcx=control, rdx=5, r8=6, rax=0xBAD)
    exit_ = made.run_to(exits.Other)
    kind, _, *words = struct.unpack_from("<II4Q", exit_.data)
    assert (exit_.reason, kind, words) == (ExitReason.HYPERV, 2, [control, 0, 5, 6])
    made.page[0x20 + 16 : 0x20 + 24] = (0x11).to_bytes(8, "little")  # its answer
    assert made.finish() == DONE
    assert made.regs.rax == 0x11


def test_events_are_checked_first(guests):
    (made,) = guests()
    assert call(made, SIGNAL_EVENT, PAGE + 1)[1] == INVALID_ALIGNMENT
    assert call(made, SIGNAL_EVENT | FAST, 1 << 24)[1] == INVALID_INPUT


def test_without_a_synic_nobody_takes_messages(world):
    made = windows.guest(world())
    made.set(windows.OS_ID, windows.LINUX)
    assert call(made, POST_MESSAGE)[1] == INVALID_INPUT


def test_the_debuggers_are_for_user_space_if_the_guest_has_asked_for_that(guests):
    (made,) = guests()
    assert call(made, RESET_DEBUG)[1] == OPERATION_DENIED
    assert made.set(windows.SYNDBG_OPTIONS, 1 << 2)
    made.load(windows.VMMCALL + code.MARKER, rcx=RESET_DEBUG)
    assert made.run_to(exits.Other).reason == ExitReason.HYPERV


def test_extended_ones_came_later(guests):
    (made,) = guests()
    assert call(made, QUERY_CAPABILITIES)[1] == INVALID_CODE
    (made,) = guests(profile="linux-6.18-amd")
    made.load(windows.VMMCALL + code.MARKER, rcx=QUERY_CAPABILITIES)
    assert made.run_to(exits.Other).reason == ExitReason.HYPERV


def test_outside_of_64_bit_code_the_operands_are_pairs_of_registers(guests):
    (made,) = guests()
    sregs = made.vcpu.get_sregs()
    sregs.cs.l, sregs.cs.db = 0, 1
    made.vcpu.set_sregs(sregs)
    made.load(windows.VMMCALL + code.MARKER, rdx=0, rax=0xBEEF)
    assert made.finish() == DONE
    assert (made.regs.rdx, made.regs.rax) == (0, INVALID_CODE)
    assert isinstance(made.regs, cpu.Regs)
