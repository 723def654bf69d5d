# SPDX-License-Identifier: Apache-2.0
"""C-250 to C-254: several vCPUs, and state that moves to another one."""

import errno

from kvmsr.kvm import exits
from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import DONE, UNKNOWN
from tests.conformance.registry import equal, holds, item
from tests.conformance.vcpu import PAGE
from tests.conformance.world import X

ELSEWHERE = CODE + 0x100


@item("C-250")
def two_pending(w):
    """Two vCPUs may both have an access pending, and each completes with its own data."""
    first, second = w.cpus(2)
    for n, cpu in enumerate((first, second)):
        cpu.load(code.RDMSR + code.MARKER, rcx=X + n)
    pending = [cpu.run_to(exits.Rdmsr) for cpu in (first, second)]
    equal([one.index for one in pending], [X, X + 1])
    pending[1].answer(0x2222)
    pending[0].answer(0x1111)
    for cpu, value in ((second, 0x2222), (first, 0x1111)):
        equal(cpu.finish(), DONE)
        equal(cpu.regs.rax, value)


@item("C-251")
def closed_while_pending(w):
    """A vCPU that is closed with an access pending takes nothing with it."""
    first, second = w.cpus(2)
    first.start_rdmsr(X)
    first.page.release()
    first.vcpu.close()
    equal(second.read(X), UNKNOWN)
    second.load(code.MARKER)
    equal(second.finish(), DONE)


def _moved(w, cpu):
    """Return another vCPU with the registers of *cpu*."""
    other = w.another_vcpu(cpu)
    other.vcpu.set_sregs(cpu.vcpu.get_sregs())
    other.vcpu.set_regs(cpu.vcpu.get_regs())
    return other


@item("C-252")
def moved_while_pending(w):
    """State that was saved with the access pending repeats the access in another vCPU."""
    cpu = w.cpu()
    cpu.start_rdmsr(X, then=code.INC_RBX).answer(5)
    other = _moved(w, cpu)
    again = other.run_to(exits.Rdmsr)
    equal(again.index, X)
    again.answer(6)
    equal(other.finish(), DONE)
    equal(other.regs.rax, 6)


@item("C-253")
def moved_after_flush(w):
    """State that was saved after completing by immediate_exit goes on without a second exit."""
    cpu = w.cpu()
    cpu.start_rdmsr(X, then=code.INC_RBX).answer(5)
    cpu.flush()
    other = _moved(w, cpu)
    equal(other.finish(), DONE)
    equal(other.regs.rax, 5)


@item("C-254")
def stale_completion(w):
    """A reset without completing first: the old access is completed on top of the new state."""
    cpu = w.cpu()
    cpu.load(code.RDMSR + code.MARKER, rcx=X)
    equal(cpu.raw_run(), 0)
    cpu.put(ELSEWHERE, code.MARKER)
    fresh = cpu.vcpu.get_regs()
    fresh.rip, fresh.rax, fresh.rdx = ELSEWHERE, 0x5555, 0x6666
    cpu.vcpu.set_regs(fresh)
    cpu.page[PAGE.MSR_DATA] = (0x7777).to_bytes(8, "little")
    cpu.scribble(PAGE.IMMEDIATE_EXIT, 1)
    equal(cpu.raw_run(), errno.EINTR)
    cpu.scribble(PAGE.IMMEDIATE_EXIT, 0)
    cpu.page[PAGE.EXIT_REASON] = bytes(4)
    damaged = cpu.regs
    equal((damaged.rax, damaged.rdx), (0x7777, 0))
    holds(damaged.rip != ELSEWHERE, "RIP is as it was set")
