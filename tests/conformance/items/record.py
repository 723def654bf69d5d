# SPDX-License-Identifier: Apache-2.0
"""C-020 to C-030: what an exit leaves in the kvm_run page."""

from kvmsr.abi import ExitReason
from tests.conformance import code
from tests.conformance.registry import equal, holds, item
from tests.conformance.vcpu import PAGE
from tests.conformance.world import X, deny

EFER, APIC_BASE = 0xC0000080, 0x1B


def _rdmsr(cpu, index=X):
    cpu.load(code.RDMSR + code.MARKER, rcx=index)
    equal(cpu.raw_run(), 0, "KVM_RUN")


def _wrmsr(cpu, index=X, value=0):
    cpu.load(code.WRMSR + code.MARKER, rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    equal(cpu.raw_run(), 0, "KVM_RUN")


@item("C-020")
def exit_of_rdmsr(w):
    """RDMSR X: KVM_RUN returns 0 with exit_reason 29, in real mode as in 64-bit mode."""
    for mode in ("real", "long"):
        cpu = w.cpu(mode)
        _rdmsr(cpu)
        equal(cpu.word(PAGE.EXIT_REASON), ExitReason.X86_RDMSR, mode)


@item("C-021")
def exit_of_wrmsr(w):
    """WRMSR X: KVM_RUN returns 0 with exit_reason 30, in real mode as in 64-bit mode."""
    for mode in ("real", "long"):
        cpu = w.cpu(mode)
        _wrmsr(cpu)
        equal(cpu.word(PAGE.EXIT_REASON), ExitReason.X86_WRMSR, mode)


@item("C-022")
def error_is_cleared(w):
    """The error byte is 0 at the exit, whatever user space left there."""
    cpu = w.cpu()
    for access in (_rdmsr, _wrmsr):
        cpu.scribble(PAGE.MSR_ERROR)
        access(cpu)
        equal(cpu.word(PAGE.MSR_ERROR), 0)


@item("C-023")
def pad_is_cleared(w):
    """All padding bytes are 0 at the exit, whatever user space left there."""
    cpu = w.cpu()
    for access in (_rdmsr, _wrmsr):
        cpu.scribble(PAGE.MSR_PAD)
        access(cpu)
        equal(bytes(cpu.page[PAGE.MSR_PAD]), bytes(7))


@item("C-024", "reason", "filter")
def one_reason(w):
    """The reason is exactly one of 1, 2 and 4."""
    cpu = w.cpu()
    for index, wanted in ((EFER, 1), (X, 2), (X + 1, 4)):
        if wanted == 4:
            cpu.vm.set_msr_filter(deny(X + 1))
        cpu.scribble(PAGE.MSR_REASON)
        _wrmsr(cpu, index, 2)
        equal(cpu.word(PAGE.MSR_REASON), wanted)


@item("C-025")
def index_is_ecx(w):
    """The index is the low half of RCX, whatever the high half."""
    cpu = w.cpu()
    exit_ = cpu.start_rdmsr(X, rcx=0xDEADBEEF_00000000 | X)
    exit_.answer(0)
    equal(exit_.index, X)
    equal(cpu.word(PAGE.MSR_INDEX), X)


@item("C-026")
def data_of_a_read_is_zero(w):
    """The data of a read is 0 at the exit, whatever was there."""
    cpu = w.cpu()
    cpu.scribble(PAGE.MSR_DATA)
    _rdmsr(cpu)
    equal(cpu.word(PAGE.MSR_DATA), 0)


@item("C-027")
def data_of_a_write(w):
    """The data of a write is EDX:EAX, without the high halves of RDX and RAX."""
    cpu = w.cpu()
    cpu.start_wrmsr(X, 0, rax=0x1111111122222222, rdx=0x3333333344444444).done()
    equal(cpu.word(PAGE.MSR_DATA), 0x4444444422222222)


@item("C-030")
def apic_base(w):
    """apic_base holds the MSR APIC_BASE after the exit."""
    cpu = w.cpu()
    cpu.scribble(PAGE.APIC_BASE)
    _rdmsr(cpu)
    wanted = cpu.get(APIC_BASE)
    holds(wanted, "the host cannot read APIC_BASE")
    equal(cpu.word(PAGE.APIC_BASE), wanted)
