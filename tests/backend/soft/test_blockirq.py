"""KVM_GUESTDBG_BLOCKIRQ: no interrupt and no NMI while a debugger does not want one."""

import pytest

from kvmsr.abi import Cap, GuestDbg
from kvmsr.kvm import exits
from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import DONE, Fault

ENABLE, STEP, BLOCK = GuestDbg.ENABLE, GuestDbg.SINGLESTEP, GuestDbg.BLOCKIRQ
INTERRUPTS = 2 | 1 << 9
NMI, VECTOR = 2, 0x31


@pytest.fixture
def cpu(world):
    """Return a vCPU for which an interrupt waits."""
    kvm = world()
    made = kvm.cpu(irqchip=True, cpuid=kvm.cpuid)
    lapic = made.vcpu.get_lapic()
    lapic.regs[0xF1] = 1  # enabled
    lapic.regs[0x200 + 0x10 * (VECTOR // 32) + VECTOR % 32 // 8] = 1 << VECTOR % 8
    made.vcpu.set_lapic(lapic)
    made.load(code.NOP * 3 + code.MARKER, rflags=INTERRUPTS)
    return made


def test_the_capability_says_so(world):
    assert world().kvm.check_extension(Cap.SET_GUEST_DEBUG2) & BLOCK


def test_a_debugger_steps_past_it(cpu):
    cpu.vcpu.set_guest_debug(ENABLE | STEP | BLOCK)
    for number in (1, 2):
        assert cpu.run_to(exits.Debug).pc == CODE + number
    cpu.vcpu.set_guest_debug(GuestDbg(0))
    assert cpu.finish() == Fault(VECTOR)


def test_so_does_a_guest_that_runs(cpu):
    cpu.vcpu.set_guest_debug(ENABLE | BLOCK)
    cpu.vcpu.nmi()
    assert cpu.finish() == DONE
    cpu.vcpu.set_guest_debug(GuestDbg(0))
    cpu.load(code.NOP + code.MARKER, rflags=INTERRUPTS)
    assert cpu.finish() == Fault(NMI)


def test_else_it_comes_at_once(cpu):
    assert cpu.finish() == Fault(VECTOR)
