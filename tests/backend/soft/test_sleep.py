# SPDX-License-Identifier: Apache-2.0
"""A VM whose vCPUs have all fallen asleep for good: KVM_RUN returns as for a signal, once."""

import threading

import pytest

from kvmsr import backend
from kvmsr.abi import Mp
from kvmsr.kvm import Kvm
from kvmsr.kvm.exits import Interrupted
from tests.harness import CODE, Guest

LVT0, LVTT, SPIV, TMICT = 0x350, 0x320, 0xF0, 0x380
CLI_HLT, STI_HLT = b"\xfa\xf4", b"\xfb\xf4"
PATIENCE = 20  # seconds
A_WHILE = 0.5


class Run(threading.Thread):
    """Runs a vCPU once; ``exit`` is what came of it."""

    def __init__(self, vcpu):
        super().__init__(daemon=True)
        self.vcpu, self.exit = vcpu, None
        self.start()

    def run(self):
        self.exit = self.vcpu.run()

    def returned(self, patience=PATIENCE):
        self.join(patience)
        return not self.is_alive()

    def end(self):
        self.vcpu.kick()
        self.join(PATIENCE)


@pytest.fixture
def guest():
    made = Guest(Kvm(backend.open("soft")), irqchip=True)
    yield made
    made.close()


def set_lapic(vcpu, **registers):
    lapic = vcpu.get_lapic()
    for name, value in registers.items():
        at = globals()[name]
        lapic.regs[at : at + 4] = list(value.to_bytes(4, "little"))
    vcpu.set_lapic(lapic)


def test_a_halt_with_interrupts_disabled_comes_out_once(guest):
    guest.load(CLI_HLT)
    first = Run(guest.vcpu)
    assert first.returned()
    assert isinstance(first.exit, Interrupted)
    assert guest.vcpu.get_mp_state() is Mp.HALTED
    assert guest.vcpu.get_regs().rip == CODE + len(CLI_HLT)
    second = Run(guest.vcpu)
    assert not second.returned(A_WHILE)
    second.end()


def test_one_that_waits_for_an_interrupt_does_not(guest):
    guest.load(STI_HLT)
    run = Run(guest.vcpu)
    assert not run.returned(A_WHILE)
    run.end()


def test_a_timer_does_not_wake_what_has_disabled_interrupts(guest):
    set_lapic(guest.vcpu, SPIV=0x1FF, LVTT=0x20040, TMICT=1_000_000)  # periodic
    guest.load(CLI_HLT)
    assert Run(guest.vcpu).returned()


def test_an_nmi_does(guest):
    set_lapic(guest.vcpu, LVT0=0x400)  # what the 8259s send is an NMI
    guest.load(CLI_HLT)
    run = Run(guest.vcpu)
    assert not run.returned(A_WHILE)
    run.end()


def test_waking_up_begins_anew(guest):
    guest.put(4 * 2, (0x3000).to_bytes(4, "little"))
    guest.put(0x3000, CLI_HLT)
    guest.load(CLI_HLT)
    assert Run(guest.vcpu).returned()
    guest.vcpu.nmi()
    assert Run(guest.vcpu).returned()
    assert guest.vcpu.get_regs().rip == 0x3000 + len(CLI_HLT)


def test_each_vcpu_comes_out_when_the_last_has_fallen_asleep(guest):
    other = guest.vm.create_vcpu(1)  # it waits for its start-up IPI
    waiting = Run(other)
    assert not waiting.returned(A_WHILE)  # the first may send it
    guest.load(CLI_HLT)
    assert Run(guest.vcpu).returned()
    assert waiting.returned()
    other.close()


def test_a_vcpu_outside_of_kvm_run_may_wake_others(guest):
    other = guest.vm.create_vcpu(1)
    guest.load(b"\xe6\x60" + CLI_HLT)  # out %al, $0x60; cli; hlt
    guest.vcpu.run()
    waiting = Run(other)
    assert not waiting.returned(A_WHILE)
    waiting.end()
    other.close()
