# SPDX-License-Identifier: Apache-2.0
"""C-100 and C-102: single steps over a deflected access."""

from kvmsr.abi import GuestDbg
from kvmsr.kvm import exits
from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import Fault
from tests.conformance.registry import equal, holds, item
from tests.conformance.world import X

TRAP = 1 << 8
DR6_BS = 1 << 14
DB = 1


@item("C-100")
def host_steps(w):
    """
    A host's single step over a deflected RDMSR exits for the access first.

    The next KVM_RUN completes it and is KVM_EXIT_DEBUG at the next instruction, with DR6.BS,
    before any other instruction.
    """
    cpu = w.cpu()
    cpu.load(code.RDMSR + code.INC_RBX + code.MARKER, rcx=X, rbx=0x40)
    cpu.vcpu.set_guest_debug(GuestDbg.ENABLE | GuestDbg.SINGLESTEP)
    cpu.run_to(exits.Rdmsr).answer(5)
    debug = cpu.run_to(exits.Debug)
    equal((debug.exception, debug.pc), (DB, CODE + 2))
    holds(debug.dr6 & DR6_BS, f"DR6 {debug.dr6:#x} is without BS")
    equal((cpu.regs.rip, cpu.regs.rax, cpu.regs.rbx), (CODE + 2, 5, 0x40))


@item("C-102")
def guest_steps(w):
    """With RFLAGS.TF, the guest gets #DB after the completion, saved RIP = next instruction."""
    cpu = w.cpu()
    cpu.start_rdmsr(X, then=code.INC_RBX, rflags=2 | TRAP, rbx=0x40).answer(5)
    seen = cpu.finish()
    equal(seen, Fault(DB))
    equal((seen.rip, cpu.regs.rax, cpu.regs.rbx), (CODE + 2, 5, 0x40))
