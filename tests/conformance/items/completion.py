# SPDX-License-Identifier: Apache-2.0
"""C-060 to C-073: how the guest goes on after a deflected access was answered."""

from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import DONE, GP, Fault, Value
from tests.conformance.registry import equal, item
from tests.conformance.vcpu import PAGE
from tests.conformance.world import WRITE, X, deny

STAR = 0xC0000081
ONES = (1 << 64) - 1
NMI, VECTOR = 2, 0x31
INTERRUPTS = 1 << 9


@item("C-060")
def value_of_a_read(w):
    """A read gives EAX and EDX the halves of the data and clears the upper halves of RAX, RDX."""
    cpu = w.cpu()
    cpu.start_rdmsr(X, rax=ONES, rdx=ONES).answer(0x0123456789ABCDEF)
    equal(cpu.finish(), DONE)
    equal((cpu.regs.rdx, cpu.regs.rax), (0x01234567, 0x89ABCDEF))


@item("C-061")
def length_of_the_instruction(w):
    """A completed read moves RIP by the instruction's length, prefixes included."""
    for mode, prefixes in (
        ("long", (b"", code.OPERAND_SIZE, code.REX_W, code.OPERAND_SIZE + code.REX_W)),
        ("real", (b"", code.OPERAND_SIZE)),
    ):
        cpu = w.cpu(mode)
        for prefix in prefixes:
            body = prefix + code.RDMSR
            cpu.load(body + code.MARKER, rcx=X)
            equal(cpu.raw_run(), 0)
            cpu.flush()
            equal(cpu.regs.rip, CODE + len(body), f"{mode} {body.hex(' ')}")


@item("C-063")
def write_changes_rip_alone(w):
    """A completed write changes no register but RIP."""
    cpu = w.cpu()
    exit_ = cpu.start_wrmsr(X, 0, rax=ONES, rdx=ONES - 1, rbx=3, rsi=4, r15=5)
    wanted = cpu.regs
    wanted.rip += 2
    exit_.done()
    cpu.flush()
    equal(cpu.regs, wanted)


@item("C-064")
def fault(w):
    """A fault is #GP(0) whose saved RIP is the MSR instruction itself, not the next."""
    for mode in ("real", "long"):
        cpu = w.cpu(mode)
        cpu.start_rdmsr(X).fault()
        seen = cpu.finish()
        equal((seen, seen.error_code, seen.rip), (GP, 0, CODE), f"RDMSR, {mode}")
        cpu.start_wrmsr(X, 1).fault()
        seen = cpu.finish()
        equal((seen, seen.error_code, seen.rip), (GP, 0, CODE), f"WRMSR, {mode}")


@item("C-065")
def fault_keeps_registers(w):
    """A fault on a read leaves RAX and RDX; any error but 0 counts, and the data does not."""
    cpu = w.cpu()
    for error in (1, 0x80):
        cpu.start_rdmsr(X, rax=ONES, rdx=0x5555).fault()
        cpu.page[PAGE.MSR_ERROR] = bytes((error,))
        cpu.scribble(PAGE.MSR_DATA, 0x77)
        equal(cpu.finish(), GP)
        equal((cpu.regs.rax, cpu.regs.rdx), (ONES, 0x5555))


@item("C-068")
def completed_once(w):
    """A completion happens once: data changed after an EINTR has no effect."""
    cpu = w.cpu()
    cpu.start_rdmsr(X).answer(5)
    cpu.flush()
    cpu.scribble(PAGE.MSR_DATA, 0x99)
    equal(cpu.finish(), DONE)
    equal((cpu.regs.rdx, cpu.regs.rax), (0, 5))


@item("C-069")
def two_in_a_row(w):
    """Two deflected instructions in a row give two exits, each with its own index."""
    cpu = w.cpu()
    first = cpu.start_rdmsr(X, then=code.mov_ecx(X + 1) + code.WRMSR)
    equal(first.index, X)
    first.answer(0x600000007)
    exit_ = cpu.run()
    equal((exit_.op, exit_.index, exit_.value), ("WRMSR", X + 1, 0x600000007))
    exit_.done()
    equal(cpu.finish(), DONE)


@item("C-071", "filter")
def observe_and_pass_on(w):
    """A deflected write that the VMM passes on with KVM_SET_MSRS is there for the guest."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(deny(STAR, flags=WRITE))
    exit_ = cpu.start_wrmsr(STAR, 0x0013000800000000)
    cpu.vcpu.set_msrs({exit_.index: exit_.value})
    exit_.done()
    equal(cpu.finish(), DONE)
    equal(cpu.read(STAR), Value(0x0013000800000000))


@item("C-072")
def rflags_are_unchanged(w):
    """A completed access leaves RFLAGS as they were."""
    cpu = w.cpu()
    rflags = 0x8D7  # OF, SF, ZF, AF, PF, CF
    cpu.start_rdmsr(X, rflags=rflags).answer(ONES)
    equal(cpu.finish(), DONE)
    equal(cpu.regs.rflags, rflags)


@item("C-073")
def interrupt_meanwhile(w):
    """
    An interrupt or NMI that becomes pending during the exit comes after the instruction.

    Its frame holds the next instruction's RIP, and the registers hold the value read.
    """
    cpu = w.cpu()
    for vector in (NMI, VECTOR):
        exit_ = cpu.start_rdmsr(X, then=code.NOP, rflags=2 | INTERRUPTS)
        if vector == NMI:
            cpu.vcpu.nmi()
        else:
            cpu.vcpu.interrupt(vector)
        exit_.answer(5)
        seen = cpu.finish()
        equal(seen, Fault(vector))
        equal(seen.rip, CODE + 2, "saved RIP")
        equal(cpu.regs.rax, 5)
        cpu = w.cpu()  # a new one: the NMI's handler has not ended, which masks the next
