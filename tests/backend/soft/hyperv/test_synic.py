"""The SynIC and the synthetic timers: messages, interrupts, and what user space hears of."""

import errno
import struct

import pytest

from kvmsr.abi import Cap, ExitReason
from kvmsr.kvm import exits
from tests.backend.soft.hyperv import windows
from tests.backend.soft.hyperv.windows import PAGE
from tests.conformance import code
from tests.conformance.outcome import DONE, INVAL, Fault, Value
from tests.conformance.registry import errno_of

VECTOR, SINT = 0x31, 2
ENABLE, PERIODIC, AUTO_ENABLE, DIRECT = 1, 2, 8, 1 << 12
MASKED, AUTO_EOI = 1 << 16, 1 << 17
EXPIRED = 0x80000010
SLOT = PAGE + 256 * SINT
INTERRUPTS = 2 | 1 << 9
SPIV = 0x80F
MILLISECOND = 10_000  # in units of 100 ns


@pytest.fixture
def cpu(world):
    """Return a vCPU whose SynIC works, with a page for messages and SINT2 at a vector."""
    made = windows.guest(world())
    made.vcpu.enable_cap(Cap.HYPERV_SYNIC2, 0)
    assert made.write(0x1B, made.get(0x1B) | 1 << 10) == DONE  # x2APIC
    assert made.write(SPIV, 0x1FF) == DONE
    assert quiet_write(made, windows.SIMP, PAGE | 1)
    assert made.write(windows.SINT2, VECTOR) == DONE
    return made


def quiet_write(cpu, index, value):
    """Write an MSR, pass over the KVM_EXIT_HYPERV that this makes, and come to the end."""
    cpu.load(code.WRMSR + code.MARKER, rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    exit_ = cpu.run_to(exits.Other)
    assert exit_.reason == ExitReason.HYPERV
    return cpu.finish() == DONE


def message(cpu):
    """Return type, flags and payload of the message in the SINT's slot."""
    kind, size, flags = struct.unpack_from("<IBB", cpu.memory.view, SLOT)
    return kind, flags, bytes(cpu.memory.view[SLOT + 16 : SLOT + 16 + size])


def wait(cpu):
    """HLT with interrupts on; return what comes."""
    cpu.load(b"\xfb\xf4" + code.MARKER, rflags=INTERRUPTS)  # sti; hlt
    return cpu.finish()


def end_interrupt(cpu):
    assert cpu.write(windows.EOI, 0) == DONE


# Enabling it


def test_it_takes_a_local_apic_in_the_kernel(world):
    kvm = world()
    vcpu = kvm.cpu(cpuid=windows.cpuid(kvm)).vcpu
    assert errno_of(vcpu.enable_cap, Cap.HYPERV_SYNIC, 0) == errno.EINVAL
    vcpu = windows.guest(kvm).vcpu
    assert errno_of(vcpu.enable_cap, Cap.HYPERV_SYNIC2, 1) == errno.EINVAL
    assert errno_of(vcpu.enable_cap, Cap.HYPERV_SYNIC, 0) == 0


def test_until_then_its_registers_are_illegal(world):
    made = windows.guest(world())
    assert made.read(windows.SINT2) == made.write(windows.STIMER0_COUNT, 1) == INVAL
    assert made.set(windows.SIMP, 0)  # what is there anyway may be restored
    assert not made.set(windows.SIMP, PAGE | 1)
    made.vcpu.enable_cap(Cap.HYPERV_SYNIC, 0)
    assert made.read(windows.SINT2) == Value(MASKED)
    assert made.read(windows.SCONTROL) == Value(1)


@pytest.mark.parametrize(("cap", "clears"), [("HYPERV_SYNIC", True), ("HYPERV_SYNIC2", False)])
def test_pages_are_cleared_by_the_older_capability_alone(world, cap, clears):
    made = windows.guest(world())
    made.vcpu.enable_cap(Cap[cap], 0)
    made.put(PAGE, b"\xff" * 0x1000)
    assert quiet_write(made, windows.SIMP, PAGE | 1)
    assert (bytes(made.memory.view[PAGE : PAGE + 0x1000]) == bytes(0x1000)) == clears


def test_user_space_hears_of_pages_and_of_the_switch(cpu):
    cpu.load(code.WRMSR + code.MARKER, rcx=windows.SIEFP, rax=PAGE + 0x1001, rdx=0)
    exit_ = cpu.run_to(exits.Other)
    kind, _, msr, _, *registers = struct.unpack_from("<IIIIQQQ", exit_.data)
    assert (exit_.reason, kind, msr) == (ExitReason.HYPERV, 1, windows.SIEFP)
    assert registers == [1, PAGE + 0x1001, PAGE | 1]
    assert cpu.finish() == DONE


def test_vectors_below_16_are_illegal_unless_masked(cpu):
    assert cpu.write(windows.SINT2, 15) == INVAL
    assert cpu.write(windows.SINT2, MASKED | 15) == DONE
    assert cpu.set(windows.SINT2, 0)


# Timers


def test_a_timer_in_direct_mode_interrupts(cpu):
    assert cpu.write(windows.STIMER0_CONFIG, DIRECT | AUTO_ENABLE | VECTOR << 4) == DONE
    soon = cpu.get(windows.REF_COUNT) + 10_000 * MILLISECOND
    assert cpu.write(windows.STIMER0_COUNT, soon) == DONE
    assert cpu.get(windows.STIMER0_CONFIG) & ENABLE
    assert wait(cpu) == Fault(VECTOR)
    assert cpu.get(windows.REF_COUNT) >= soon
    assert not cpu.get(windows.STIMER0_CONFIG) & ENABLE


def test_one_that_is_over_interrupts_at_once(cpu):
    assert cpu.write(windows.STIMER0_CONFIG, DIRECT | AUTO_ENABLE | VECTOR << 4) == DONE
    assert cpu.write(windows.STIMER0_COUNT, 1) == DONE
    assert wait(cpu) == Fault(VECTOR)


def test_else_by_a_message(cpu):
    assert cpu.write(windows.STIMER0_CONFIG, SINT << 16 | AUTO_ENABLE) == DONE
    soon = cpu.get(windows.REF_COUNT) + 10_000 * MILLISECOND
    assert cpu.write(windows.STIMER0_COUNT, soon) == DONE
    assert wait(cpu) == Fault(VECTOR)
    kind, flags, payload = message(cpu)
    timer, _, expired, delivered = struct.unpack("<IIQQ", payload)
    assert (kind, flags, timer, expired) == (EXPIRED, 0, 0, soon)
    assert soon <= delivered <= cpu.get(windows.REF_COUNT)


@pytest.mark.parametrize("by", [windows.EOM, windows.EOI])
def test_a_message_waits_until_the_slot_is_free(cpu, by):
    cpu.put(SLOT, struct.pack("<I", 1))
    assert cpu.write(windows.STIMER0_CONFIG, SINT << 16 | AUTO_ENABLE) == DONE
    if by == windows.EOI:  # an interrupt of the SINT's vector is being handled
        assert cpu.write(0x83F, VECTOR) == DONE
        assert wait(cpu) == Fault(VECTOR)
    assert cpu.write(windows.STIMER0_COUNT, 1) == DONE
    assert message(cpu)[:2] == (1, 1)  # the guest is asked to say when it is free
    cpu.put(SLOT, bytes(8))
    assert cpu.write(by, 0) == DONE
    assert message(cpu)[0] == EXPIRED
    assert wait(cpu) == Fault(VECTOR)


def test_a_periodic_one_goes_on(cpu):
    assert cpu.write(windows.STIMER0_CONFIG, SINT << 16 | PERIODIC | AUTO_ENABLE) == DONE
    assert cpu.write(windows.STIMER0_COUNT, MILLISECOND) == DONE
    expired = []
    for _ in range(3):
        assert wait(cpu) == Fault(VECTOR)
        end_interrupt(cpu)
        expired.append(struct.unpack("<IIQQ", message(cpu)[2])[2])
        cpu.put(SLOT, bytes(8))
    assert all((later - expired[0]) % MILLISECOND == 0 for later in expired)
    assert expired == sorted(set(expired))
    assert cpu.write(windows.STIMER0_CONFIG, 0) == DONE


def test_a_count_of_0_stops_it(cpu):
    assert cpu.write(windows.STIMER0_CONFIG, SINT << 16 | PERIODIC | AUTO_ENABLE) == DONE
    assert cpu.write(windows.STIMER0_COUNT, MILLISECOND) == DONE
    assert cpu.write(windows.STIMER0_COUNT, 0) == DONE
    assert not cpu.get(windows.STIMER0_CONFIG) & ENABLE


def test_auto_eoi_ends_an_interrupt_as_it_is_taken(cpu):
    for flags, again in ((0, DONE), (AUTO_EOI, Fault(VECTOR))):
        assert cpu.write(windows.SINT2, VECTOR | flags) == DONE
        assert cpu.write(0x83F, VECTOR) == DONE  # to itself
        assert wait(cpu) == Fault(VECTOR)
        assert cpu.write(0x83F, VECTOR) == DONE
        cpu.load(b"\xfb\x90\x90" + code.MARKER, rflags=INTERRUPTS)  # sti; nop; nop
        assert cpu.finish() == again
        end_interrupt(cpu)
        cpu.load(b"\xfb\x90\x90" + code.MARKER, rflags=INTERRUPTS)
        cpu.finish()
        end_interrupt(cpu)
