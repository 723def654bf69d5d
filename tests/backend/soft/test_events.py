# SPDX-License-Identifier: Apache-2.0
"""Events that wait, and what else the differential runs told about KVM's side."""

import errno
import threading
from dataclasses import replace

import pytest

from kvmsr import backend
from kvmsr.abi import Cap, cpu, ioctls, vm
from kvmsr.backend.soft.profile import PROFILES
from kvmsr.errors import KvmsrError
from kvmsr.kvm import Kvm, exits
from tests.harness import CODE, MSR, Guest

AMD = "linux-6.18-amd"


def guest_on(profile, *, irqchip=False, **changes):
    made = backend.open("soft", profile=profile)
    made.profile = replace(PROFILES[profile], **changes)
    return Guest(Kvm(made), irqchip=irqchip)


@pytest.fixture
def guest():
    made = guest_on(AMD)
    yield made
    made.close()


def exception_of(guest):
    exception = guest.vcpu.get_vcpu_events().exception
    return exception.injected, exception.pending, exception.nr


def inject(guest, vector, code=None):
    events = guest.vcpu.get_vcpu_events()
    exception = events.exception
    exception.injected, exception.pending, exception.nr = 1, 0, vector
    exception.has_error_code, exception.error_code = int(code is not None), code or 0
    guest.vcpu.set_vcpu_events(events)


def test_set_regs_drops_what_is_pending_and_not_what_is_injected(guest):
    guest.load(b"\x0f\x32\xf4", rcx=MSR)
    guest.vcpu.run().fault()
    guest.vcpu.complete_pending()
    assert exception_of(guest) == (1, 1, 13)
    guest.vcpu.set_regs(guest.vcpu.get_regs())
    assert exception_of(guest) == (0, 0, 13)
    inject(guest, 6)
    guest.vcpu.set_regs(guest.vcpu.get_regs())
    assert exception_of(guest) == (1, 0, 6)


def test_a_fault_on_top_of_an_injected_one_is_a_double_fault(guest):
    guest.load(b"\x0f\x32\xf4", rcx=MSR)
    guest.vcpu.run().fault()
    inject(guest, 11, 0)
    guest.vcpu.complete_pending()
    assert exception_of(guest) == (1, 1, 8)


def test_nmi_is_no_exception(guest):
    with pytest.raises(KvmsrError, match="Invalid argument"):
        inject(guest, 2)


def test_what_waits_makes_a_second_injection_busy(guest):
    inject_db = cpu.GuestDebug(control=0x40001)
    guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, inject_db)
    with pytest.raises(OSError) as caught:
        guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, inject_db)
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize(("profile", "shadow"), ((AMD, 3), ("linux-6.1-intel", 2)))
def test_svm_cannot_tell_whose_shadow_it_is(profile, shadow):
    guest = guest_on(profile)
    guest.load(b"\xfb\x0f\x32\xf4", rcx=MSR)  # sti; rdmsr
    guest.vcpu.run().answer(0)
    assert guest.vcpu.get_vcpu_events().interrupt.shadow == shadow
    guest.close()


def test_the_interrupt_of_user_space_comes_before_the_nmi(guest):
    for vector, at in ((2, 0x3000), (0x20, 0x3100)):
        guest.put(4 * vector, at.to_bytes(4, "little"))
        guest.put(at, bytes((0xE6, vector, 0xCF)))  # out %al, $vector; iret
    guest.load(b"\xf4")
    guest.vcpu.raw_ioctl(ioctls.KVM_INTERRUPT, cpu.Interrupt(irq=0x20))
    guest.vcpu.raw_ioctl(ioctls.KVM_NMI)
    ports = []
    while isinstance(exit_ := guest.vcpu.run(), exits.IoOut):
        ports.append(exit_.port)
    assert ports == [2, 0x20]


INJECT_BP = cpu.GuestDebug(control=1 | 1 << 19)


def handle_bp(guest):
    guest.put(4 * 3, (0x3000).to_bytes(4, "little"))
    guest.put(0x3000, b"\xe6\x03\xf4")  # out %al, $3; hlt


def returns_to(guest):
    at = guest.vcpu.get_regs().rsp & 0xFFFF
    return int.from_bytes(guest.memory.view[at : at + 2], "little")


@pytest.mark.parametrize(
    ("profile", "arrives"),
    ((AMD, False), ("linux-6.1-amd", False), ("patch-v3", True), ("linux-6.1-intel", True),
     ("pvm", True)),
)  # fmt: skip
def test_a_breakpoint_that_no_instruction_raises(profile, arrives):
    """Without a next RIP, kvm_amd decodes what is at RIP, and drops what that does not raise."""
    guest = guest_on(profile)
    handle_bp(guest)
    guest.load(b"\x90\xe6\x60\xf4")
    guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, INJECT_BP)
    assert guest.vcpu.run().port == (3 if arrives else 0x60)
    guest.close()


def test_a_breakpoint_at_its_instruction_is_behind_it(guest):
    handle_bp(guest)
    guest.load(b"\xcc\xf4")
    guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, INJECT_BP)
    assert guest.vcpu.run().port == 3
    assert returns_to(guest) == CODE + 1


def test_a_breakpoint_behind_an_instruction_that_came_out(guest):
    """SVM has told the next RIP: nothing is decoded."""
    handle_bp(guest)
    guest.load(b"\xe6\x60\x90\xf4")
    guest.vcpu.run()
    guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, INJECT_BP)
    assert guest.vcpu.run().port == 3
    assert returns_to(guest) == CODE + 2


def test_a_breakpoint_after_a_kick_is_dropped(guest):
    handle_bp(guest)
    guest.load(b"\xe6\x60\xeb\xfe")  # out %al, $0x60; 1: jmp 1b
    guest.vcpu.run()
    kick_later(guest)
    assert isinstance(guest.vcpu.run(), exits.Interrupted)
    guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, INJECT_BP)
    kick_later(guest)
    assert isinstance(guest.vcpu.run(), exits.Interrupted)


def kick_later(guest):
    threading.Timer(0.1, guest.vcpu.kick).start()


@pytest.mark.parametrize(("profile", "at_exit"), ((AMD, 0), ("pvm", 2)))
def test_an_emulated_out_is_over_at_its_exit(profile, at_exit):
    guest = guest_on(profile)
    guest.load(b"\xe6\x60\xe6\x7e\xf4")
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rip == CODE + at_exit
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rip == CODE + 4  # port 0x7e is so everywhere
    guest.close()


@pytest.mark.parametrize(
    ("profile", "same", "other"),
    (
        (AMD, 0, errno.EINVAL), ("linux-6.1-amd", 0, errno.EINVAL),
        ("pvm", errno.EINVAL, errno.EINVAL), ("patch-v3", 0, 0),
    ),
)  # fmt: skip
def test_cpuid_after_the_first_run(profile, same, other):
    guest = guest_on(profile)
    guest.load(b"\xf4")
    guest.vcpu.run()
    found = []
    for request in (cpu.cpuid2(0), cpu.cpuid2(1)):
        request.nent = len(request.entries)
        try:
            guest.vcpu.raw_ioctl(ioctls.KVM_SET_CPUID2, request)
            found.append(0)
        except OSError as error:
            found.append(error.errno)
    assert found == [same, other]
    guest.close()


def test_patch_v3_has_no_filter_ioctl():
    guest = guest_on("patch-v3")
    with pytest.raises(OSError) as caught:
        guest.vm.raw_ioctl(ioctls.KVM_X86_SET_MSR_FILTER, vm.MsrFilter())
    assert caught.value.errno == errno.ENOTTY
    guest.close()


def test_as_many_vcpus_as_the_capability_says(guest):
    limit = guest.vm.check_extension(Cap.MAX_VCPUS)
    others = [guest.vm.create_vcpu(number) for number in range(1, limit)]
    with pytest.raises(KvmsrError):
        guest.vm.create_vcpu(limit)
    for vcpu in others:
        vcpu.close()


@pytest.mark.parametrize(
    ("cr8", "expected"),
    ((15, 15), (16, 5)),
)
def test_an_illegal_cr8_leaves_the_old_one(guest, cr8, expected):
    for value in (5, cr8):
        sregs = guest.vcpu.get_sregs()
        sregs.cr8 = value
        guest.vcpu.set_sregs(sregs)
    assert guest.vcpu.get_sregs().cr8 == expected


def test_the_local_apic_may_lie_at_page_0():
    guest = guest_on(AMD, irqchip=True)
    guest.load(b"\xe6\x60\xf4")
    sregs = guest.vcpu.get_sregs()
    sregs.apic_base = 0x900
    guest.vcpu.set_sregs(sregs)
    assert isinstance(guest.vcpu.run(), exits.IoOut)
    guest.close()
