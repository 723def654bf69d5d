# SPDX-License-Identifier: Apache-2.0
"""C-040 to C-052: a vCPU between a deflecting exit and its completion."""

from kvmsr.abi import MsrExitReason
from tests.conformance import code
from tests.conformance.guest import CODE, ELSEWHERE
from tests.conformance.outcome import DONE, GP
from tests.conformance.registry import equal, holds, item
from tests.conformance.world import ALL, X, deny

EFER, STAR = 0xC0000080, 0xC0000081
CARRY, ZERO = 1, 1 << 6
_LONGER = code.OPERAND_SIZE + code.RDMSR


@item("C-040")
def rip_is_at_the_instruction(w):
    """While an access is pending, KVM_GET_REGS shows RIP at the instruction."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X)
    equal(cpu.regs.rip, CODE)
    exit_.answer(0)


@item("C-041")
def registers_are_unchanged(w):
    """RAX and RDX are at the exit what they were before."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X, rax=0x1122334455667788, rdx=0x99AABBCCDDEEFF00)
    regs = cpu.regs
    equal((regs.rax, regs.rdx), (0x1122334455667788, 0x99AABBCCDDEEFF00))
    exit_.answer(0)


@item("C-042")
def no_exception_yet(w):
    """KVM_GET_VCPU_EVENTS shows no exception at the exit, not even once a fault is asked for."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X)
    for _ in range(2):
        exception = cpu.vcpu.get_vcpu_events().exception
        equal((exception.injected, exception.pending), (0, 0))
        if cpu.page[0x20] == 0:
            exit_.fault()


@item("C-043")
def get_msrs_while_pending(w):
    """KVM_GET_MSRS works while an access is pending, and does not complete it."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X)
    holds(cpu.get(EFER), "KVM_GET_MSRS of EFER")
    equal(cpu.regs.rip, CODE)
    exit_.answer(5)
    equal(cpu.finish(), DONE)
    equal(cpu.regs.rax, 5)


@item("C-045")
def other_ioctls_while_pending(w):
    """KVM_GET_REGS, KVM_GET_SREGS and KVM_SET_SREGS do not disturb the completion."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X)
    cpu.vcpu.get_regs()
    cpu.vcpu.set_sregs(cpu.vcpu.get_sregs())
    exit_.answer(0x500000006)
    equal(cpu.finish(), DONE)
    equal((cpu.regs.rdx, cpu.regs.rax), (5, 6))


@item("C-048")
def mask_while_pending(w):
    """A new mask or filter does not touch the pending access; the next one sees it."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X, then=code.RDMSR)
    cpu.vm.enable_user_space_msr(MsrExitReason(0))
    exit_.answer(7)
    fault = cpu.finish()
    equal(fault, GP)
    equal(fault.rip, CODE + 2, "saved RIP")
    equal(cpu.regs.rax, 7)
    if "filter" in w.kernel.lacks:
        return
    cpu.vm.enable_user_space_msr(ALL)
    exit_ = cpu.start_rdmsr(X, then=code.mov_ecx(STAR) + code.RDMSR)
    cpu.vm.enable_user_space_msr(MsrExitReason(0))
    cpu.vm.set_msr_filter(deny(X, STAR))
    exit_.answer(8)
    equal(cpu.finish(), GP, "the filter at the next access")
    equal(cpu.regs.rax, 8)


@item("C-049")
def set_regs_while_pending(w):
    """RBX set by KVM_SET_REGS while an access is pending survives the completion."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X)
    regs = cpu.regs
    regs.rbx = 0x1234
    cpu.vcpu.set_regs(regs)
    exit_.answer(5)
    equal(cpu.finish(), DONE)
    equal((cpu.regs.rbx, cpu.regs.rax), (0x1234, 5))


def rip_after_a_move(kernel, old, old_length, new, new_length):
    """Return where a completed access goes on if RIP was moved from *old* to *new* meanwhile."""
    return {
        "vmx": new + old_length,
        "svm": old + old_length,
        "svm-decode": new + new_length,
        "emulator": old + old_length,
    }[kernel.completion]


@item("C-050")
def rip_moved_and_done(w):
    """
    Success after KVM_SET_REGS moved RIP.

    The emulator, and SVM with next-RIP, go on behind the old instruction; VMX goes on at the new
    RIP plus the old length; SVM without next-RIP goes on behind the instruction at the new RIP.
    """
    cpu = w.cpu()
    cpu.put(ELSEWHERE, _LONGER)
    exit_ = cpu.start_rdmsr(X)
    regs = cpu.regs
    regs.rip = ELSEWHERE
    cpu.vcpu.set_regs(regs)
    exit_.answer(0)
    cpu.flush()
    equal(cpu.regs.rip, rip_after_a_move(w.kernel, CODE, 2, ELSEWHERE, len(_LONGER)))


@item("C-051")
def rflags_changed_and_done(w):
    """RFLAGS changed while pending: lost on the emulator's path, kept on the others."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X, rflags=2 | CARRY)
    regs = cpu.regs
    regs.rflags = 2 | ZERO
    cpu.vcpu.set_regs(regs)
    exit_.answer(0)
    cpu.flush()
    kept = CARRY if w.kernel.completion == "emulator" else ZERO
    equal(cpu.regs.rflags & (CARRY | ZERO), kept)


@item("C-052")
def rip_moved_and_fault(w):
    """A fault after KVM_SET_REGS moved RIP: the frame of the #GP holds the new RIP."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X)
    regs = cpu.regs
    regs.rip = ELSEWHERE
    cpu.vcpu.set_regs(regs)
    exit_.fault()
    fault = cpu.finish()
    equal(fault, GP)
    equal(fault.rip, ELSEWHERE)
