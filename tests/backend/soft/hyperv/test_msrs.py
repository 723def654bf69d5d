"""Hyper-V's MSRs: who may access them, and what they do."""

import struct
import time

import pytest

from kvmsr.abi import ExitReason, SystemEvent, ioctls
from kvmsr.abi.vm import ClockData
from kvmsr.kvm import exits
from tests.backend.soft.hyperv import windows
from tests.backend.soft.hyperv.windows import PAGE, word
from tests.conformance import code
from tests.conformance.outcome import DONE, GP, INVAL, Value

SECOND = 10_000_000  # in units of 100 ns


def test_without_hyper_v_in_cpuid_they_are_illegal_to_the_guest(world):
    kvm = world()
    cpu = kvm.cpu(cpuid=kvm.cpuid, irqchip=True)
    for index in (windows.OS_ID, windows.REF_COUNT, windows.STIMER0_CONFIG):
        assert cpu.read(index) == INVAL
        assert cpu.get(index) is not None


# MSR, leaf, register, bit; and whether a guest can read it
NEEDS = [
    (windows.OS_ID, 0, 5),
    (windows.RUNTIME, 0, 0),
    (windows.REF_COUNT, 0, 1),
    (windows.TPR, 0, 4),
    (windows.VP_INDEX, 0, 6),
    (windows.RESET, 0, 7),
    (windows.REFERENCE_TSC, 0, 9),
    (windows.TSC_FREQUENCY, 0, 11),
    (windows.REENLIGHTENMENT, 0, 13),
    (windows.CRASH_P0, 3, 10),
    (windows.SYNDBG_STATUS, 3, 11),
]


@pytest.mark.parametrize(("index", "register", "bit"), NEEDS)
def test_enforced_a_guest_needs_its_bit(world, index, register, bit):
    kvm = world()
    leaf = [0, 0, 0, 0]
    for there in (False, True):
        leaf[register] = there << bit
        cpu = windows.guest(
            kvm, cpuid=windows.cpuid(kvm, more={windows.FEATURES: tuple(leaf)}), mask=0
        )
        assert isinstance(cpu.read(index), Value)
        windows.enforce(cpu)
        assert (cpu.read(index) == GP) != there


@pytest.mark.parametrize(
    ("profile", "instruction"),
    [("linux-6.1-amd", windows.VMMCALL), ("linux-6.1-intel", windows.VMCALL)],
)
def test_the_hypercall_page(world, profile, instruction):
    cpu = windows.guest(world(profile))
    assert cpu.write(windows.HYPERCALL, PAGE | 1) == DONE
    assert cpu.get(windows.HYPERCALL) == 0  # without an OS ID it stays disabled
    assert cpu.write(windows.OS_ID, windows.LINUX) == DONE
    assert cpu.write(windows.HYPERCALL, PAGE | 1) == DONE
    assert bytes(cpu.memory.view[PAGE : PAGE + 4]) == instruction + b"\xc3"
    assert cpu.write(windows.OS_ID, 0) == DONE
    assert cpu.get(windows.HYPERCALL) == PAGE
    assert cpu.write(windows.OS_ID, windows.LINUX) == DONE
    assert cpu.write(windows.HYPERCALL, 1 << 30 | 1) == INVAL  # no memory


def test_vp_index_is_the_hosts_to_set(world):
    kvm = world()
    first, second = kvm.cpus(2, irqchip=True, cpuid=windows.cpuid(kvm))
    assert (first.read(windows.VP_INDEX), second.get(windows.VP_INDEX)) == (Value(0), 1)
    assert first.write(windows.VP_INDEX, 5) == INVAL
    assert second.set(windows.VP_INDEX, 5)
    assert second.get(windows.VP_INDEX) == 5
    assert not second.set(windows.VP_INDEX, 1024)


@pytest.mark.parametrize(
    ("index", "value", "event"),
    [
        (windows.RESET, 1, SystemEvent.RESET),
        (windows.CRASH_CTL, 1 << 63, SystemEvent.CRASH),
    ],
)
def test_the_end_of_a_guest_is_a_system_event_behind_its_wrmsr(world, index, value, event):
    cpu = windows.guest(world())
    cpu.load(code.WRMSR + code.MARKER, rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    assert cpu.run_to(exits.SystemEvent).type == event
    assert cpu.finish() == DONE


def test_crash_parameters_are_kept_and_a_guest_learns_nothing_of_the_switch(world):
    cpu = windows.guest(world())
    assert cpu.write(windows.CRASH_P0 + 4, 0xDEAD) == DONE
    assert cpu.get(windows.CRASH_P0 + 4) == 0xDEAD
    assert cpu.set(windows.CRASH_CTL, (1 << 64) - 1)
    assert cpu.read(windows.CRASH_CTL) == Value(1 << 63)


@pytest.mark.parametrize("x2apic", [False, True])
def test_the_local_apics_registers(world, x2apic):
    cpu = windows.guest(world())
    if x2apic:
        assert cpu.write(0x1B, cpu.get(0x1B) | 1 << 10) == DONE
    assert cpu.write(windows.TPR, 0x30) == DONE
    assert cpu.read(windows.TPR) == Value(0x30)
    assert cpu.vcpu.get_sregs().cr8 == 3
    assert cpu.read(windows.EOI) == INVAL
    assert cpu.write(windows.EOI, 0) == DONE
    assert cpu.write(windows.TPR, 1 << 32) == INVAL
    assert cpu.write(windows.ICR, 5 << 56 | 0x41) == DONE
    assert cpu.read(windows.ICR).value & 0xFF == 0x41


def test_the_assist_page_is_that_of_pv_eoi(world):
    cpu = windows.guest(world())
    cpu.put(PAGE, b"\xff" * 8)
    assert cpu.write(windows.VP_ASSIST, PAGE | 1) == DONE
    assert word(cpu, PAGE) == 0xFFFFFFFF_00000000
    assert cpu.get(0x4B564D04) == PAGE | 1
    assert cpu.write(windows.VP_ASSIST, 1 << 30 | 1) == INVAL


def test_partition_time(world):
    cpu = windows.guest(world())
    frequency = cpu.read(windows.TSC_FREQUENCY).value
    assert frequency == 1000 * cpu.vcpu.get_tsc_khz()
    before, tsc = cpu.get(windows.REF_COUNT), cpu.get(0x10)
    time.sleep(0.05)
    passed = cpu.get(windows.REF_COUNT) - before
    assert abs(passed - (cpu.get(0x10) - tsc) * SECOND // frequency) < SECOND // 100
    assert cpu.write(windows.REF_COUNT, 1) == INVAL
    assert cpu.set(windows.REF_COUNT, 1)  # and nothing happens
    assert cpu.get(windows.REF_COUNT) > before


def page_time(cpu):
    """Return the sequence of the reference TSC page, and the time that it gives now."""
    sequence, _, factor, offset = struct.unpack_from("<IIQq", cpu.memory.view, PAGE)
    return sequence, (cpu.get(0x10) * factor >> 64) + offset


def put_clock(cpu, nanoseconds):
    cpu.vm.raw_ioctl(ioctls.KVM_SET_CLOCK, ClockData(clock=nanoseconds))


def go_on(cpu):
    cpu.load(code.NOP + code.MARKER)
    assert cpu.finish() == DONE


def test_the_reference_tsc_page(world):
    cpu = windows.guest(world())
    assert cpu.write(windows.REFERENCE_TSC, PAGE) == DONE
    assert page_time(cpu) == (0, 0)  # not enabled
    assert cpu.write(windows.REFERENCE_TSC, PAGE | 1) == DONE
    sequence, now = page_time(cpu)
    assert sequence == 1
    assert 0 <= cpu.get(windows.REF_COUNT) - now < SECOND
    put_clock(cpu, 3600 * 1_000_000_000)
    go_on(cpu)
    sequence, now = page_time(cpu)
    assert sequence == 2
    assert 0 <= now - 3600 * SECOND < 60 * SECOND


def test_it_stays_as_it_is_while_the_tsc_is_emulated(world):
    cpu = windows.guest(world())
    assert cpu.write(windows.REFERENCE_TSC, PAGE | 1) == DONE
    assert cpu.write(windows.EMULATION, 1) == DONE
    before = bytes(cpu.memory.view[PAGE : PAGE + 24])
    put_clock(cpu, 3600 * 1_000_000_000)
    go_on(cpu)
    assert bytes(cpu.memory.view[PAGE : PAGE + 24]) == before
    assert cpu.get(windows.REF_COUNT) < 3600 * SECOND


def test_the_host_may_restore_it_before_there_is_memory(world):
    cpu = windows.guest(world())
    assert cpu.set(windows.REFERENCE_TSC, PAGE | 1)
    assert page_time(cpu)[0] == 0
    go_on(cpu)
    assert page_time(cpu)[0] == 1


def test_the_debugger(world):
    kvm = world()
    bare = windows.guest(kvm, cpuid=windows.cpuid(kvm, without=[windows.DEBUGGER]))
    assert bare.read(windows.SYNDBG_STATUS) == INVAL
    cpu = windows.guest(kvm)
    assert cpu.write(windows.SYNDBG_STATUS, 3) == DONE
    cpu.load(code.WRMSR + code.MARKER, rcx=windows.SYNDBG_CONTROL, rax=7, rdx=0)
    exit_ = cpu.run_to(exits.Other)
    assert exit_.reason == ExitReason.HYPERV
    kind, _, msr, _, control, status = struct.unpack_from("<IIIIQQ", exit_.data)
    assert (kind, msr, control, status) == (3, windows.SYNDBG_CONTROL, 7, 0)
    cpu.page[0x20 + 24 : 0x20 + 32] = (9).to_bytes(8, "little")  # user space's answer
    assert cpu.finish() == DONE
    assert cpu.read(windows.SYNDBG_STATUS) == Value(9)


def test_newer_kernels_hide_the_invariant_tsc_until_it_is_asked_for(world):
    for profile, hides in (("linux-6.1-amd", False), ("linux-6.18-amd", True)):
        kvm = world(profile)
        cpu = windows.guest(kvm, mask=0)

        def invariant(cpu=cpu):
            cpu.load(b"\x0f\xa2" + code.MARKER, rax=0x80000007)  # cpuid
            assert cpu.finish() == DONE
            return bool(cpu.regs.rdx & 1 << 8)

        assert invariant() != hides
        assert cpu.write(windows.TSC_INVARIANT, 1) == (DONE if hides else GP)
        assert invariant()
        assert cpu.write(windows.TSC_INVARIANT, 0) == GP
