# SPDX-License-Identifier: Apache-2.0
"""The debugger's single step, and what the guest sees of it."""

from pathlib import Path

import pytest

from kvmsr import backend
from kvmsr.abi import GuestDbg
from kvmsr.kvm import Kvm
from kvmsr.kvm.exits import Debug, Hlt, IoOut
from tests.harness import CODE, Guest

ENABLE, STEP = int(GuestDbg.ENABLE), int(GuestDbg.ENABLE | GuestDbg.SINGLESTEP)
INJECT_DB = int(GuestDbg.INJECT_DB)
TF, RF = 1 << 8, 1 << 16
HANDLER = 0x3000


@pytest.fixture(params=["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def guest(request):
    """
    A guest of kvm_pvm's, the modelled one and the real one.

    Its interrupts and exceptions end at an OUT to their vector's port.
    """
    if request.param == "kvm" and not Path("/sys/module/kvm_pvm").exists():
        pytest.skip("needs kvm_pvm")
    made = Guest(Kvm(backend.open(request.param, profile="pvm")))
    for vector in (1, 2, 6, 13):
        at = HANDLER + 0x10 * vector
        made.put(4 * vector, at.to_bytes(4, "little"))
        made.put(at, bytes((0x90, 0xE6, vector, 0xF4)))  # nop; out %al, $vector; hlt
    yield made
    made.close()


def step(guest, times=1):
    for _ in range(times):
        assert isinstance(guest.vcpu.run(), Debug)


def inject(guest, vector):
    events = guest.vcpu.get_vcpu_events()
    events.exception.injected, events.exception.nr = 1, vector
    guest.vcpu.set_vcpu_events(events)


def set_rflags(guest, value):
    regs = guest.vcpu.get_regs()
    regs.rflags = value
    guest.vcpu.set_regs(regs)


def frame_flags(guest):
    """Return the flags that the last exception or interrupt has pushed."""
    at = guest.vcpu.get_regs().rsp & 0xFFFF
    return int.from_bytes(guest.memory.view[at + 4 : at + 6], "little")


# KVM puts the debugger's TF into RFLAGS where it was asked to step, and nowhere else
# (singlestep_rip of arch/x86/kvm/x86.c); kvm_pvm, which emulates the guest, takes it out with the
# first instruction.


def test_the_frame_of_an_injected_db_has_the_debuggers_tf(guest):
    guest.load(b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(STEP | INJECT_DB)
    step(guest)
    assert frame_flags(guest) & TF


def test_so_has_that_of_an_nmi(guest):
    guest.load(b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(STEP)
    guest.vcpu.nmi()
    step(guest)
    assert frame_flags(guest) & TF


def test_so_has_that_of_a_fault_of_the_first_instruction(guest):
    guest.load(b"\x90\x0f\x0b\xf4")
    guest.vcpu.set_guest_debug(STEP)
    step(guest)
    guest.vcpu.set_guest_debug(STEP)
    assert guest.vcpu.run().pc == HANDLER + 0x60 + 1  # the handler is stepped through, too
    assert frame_flags(guest) & TF


def test_a_frame_after_a_step_has_not(guest):
    guest.load(b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(STEP)
    step(guest)
    inject(guest, 6)
    step(guest)
    assert not frame_flags(guest) & TF


def test_a_frame_after_a_step_over_an_access_has_not(guest):
    guest.load(b"\xe6\x60\x90\xf4")
    guest.vcpu.set_guest_debug(STEP)
    assert isinstance(guest.vcpu.run(), IoOut)
    inject(guest, 6)
    step(guest)
    assert not frame_flags(guest) & TF


def test_a_tf_of_user_space_is_in_the_frame(guest):
    guest.load(b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(STEP)
    step(guest)
    set_rflags(guest, TF | 2)
    inject(guest, 6)
    step(guest)
    assert frame_flags(guest) & TF


@pytest.mark.parametrize("code", [b"\x9d", b"\xcf"], ids=["popf", "iret"])
def test_a_tf_that_the_guest_has_popped_is_in_the_frame(guest, code):
    guest.put(0x8000, bytes((0x02, 0x10, 0, 0, 0, 1)) if code == b"\xcf" else b"\x00\x01")
    guest.load(b"\x90" + code + b"\x90\xf4")
    guest.vcpu.set_guest_debug(STEP)
    step(guest, 2)
    inject(guest, 6)
    step(guest)
    assert frame_flags(guest) & TF


def test_rf_ends_with_an_out(guest):
    guest.load(b"\xe6\x60\xf4")
    set_rflags(guest, RF | 2)
    assert isinstance(guest.vcpu.run(), IoOut)
    guest.vcpu.complete_pending()
    assert not guest.vcpu.get_regs().rflags & RF


def test_steps_that_have_ended_leave_nothing_behind(guest):
    guest.load(b"\xe4\x60\x90\x90\xf4")  # in $0x60, %al; nop; nop; hlt
    guest.vcpu.set_guest_debug(STEP)
    guest.vcpu.run()
    step(guest)
    guest.vcpu.set_guest_debug(ENABLE)
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rip == CODE + 5
