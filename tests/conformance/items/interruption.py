# SPDX-License-Identifier: Apache-2.0
"""C-080 to C-092: immediate_exit and signals."""

import errno
import signal
import threading
import time
from contextlib import contextmanager

from kvmsr.abi import ExitReason
from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import DONE, GP
from tests.conformance.registry import equal, holds, item
from tests.conformance.vcpu import PAGE
from tests.conformance.world import X

SIGNAL = signal.SIGUSR1
A_WHILE = 0.05


def _immediate(cpu):
    """Enter KVM_RUN with immediate_exit and return the errno."""
    cpu.scribble(PAGE.IMMEDIATE_EXIT, 1)
    try:
        return cpu.raw_run()
    finally:
        cpu.scribble(PAGE.IMMEDIATE_EXIT, 0)


def _read_and_leave(w):
    cpu = w.cpu()
    cpu.start_rdmsr(X, then=code.INC_RBX, rbx=0x40).answer(0x100000002)
    equal(_immediate(cpu), errno.EINTR)
    return cpu


@item("C-080")
def completes_and_leaves(w):
    """With immediate_exit, KVM_RUN completes the access and fails with EINTR."""
    regs = _read_and_leave(w).regs
    equal((regs.rdx, regs.rax, regs.rip), (1, 2, CODE + 2))


@item("C-081")
def leaves_the_exit_reason(w):
    """After C-080 exit_reason is still that of the access."""
    cpu = w.cpu()
    cpu.load(code.RDMSR + code.MARKER, rcx=X)
    equal(cpu.raw_run(), 0)
    equal(_immediate(cpu), errno.EINTR)
    equal(cpu.word(PAGE.EXIT_REASON), ExitReason.X86_RDMSR)


@item("C-082")
def runs_nothing_else(w):
    """In C-080 no other guest instruction has run."""
    equal(_read_and_leave(w).regs.rbx, 0x40)


@item("C-083")
def goes_on(w):
    """After C-080 the guest goes on behind the instruction, without a second exit."""
    cpu = _read_and_leave(w)
    equal(cpu.finish(), DONE)
    equal((cpu.regs.rbx, cpu.regs.rax), (0x41, 2))


def _fault_and_leave(w):
    cpu = w.cpu()
    cpu.start_rdmsr(X, rax=9).fault()
    equal(_immediate(cpu), errno.EINTR)
    return cpu


@item("C-084")
def fault_is_queued(w):
    """A fault completed by immediate_exit is queued: events show 13(0), RIP has not moved."""
    cpu = _fault_and_leave(w)
    exception = cpu.vcpu.get_vcpu_events().exception
    holds(exception.injected or exception.pending, "no exception is queued")
    equal((exception.nr, exception.has_error_code, exception.error_code), (13, 1, 0))
    equal((cpu.regs.rip, cpu.regs.rax), (CODE, 9))


@item("C-085")
def queued_fault_is_delivered(w):
    """After C-084 KVM_RUN delivers the #GP."""
    fault = _fault_and_leave(w).finish()
    equal((fault, fault.rip, fault.error_code), (GP, CODE, 0))


@item("C-087")
def nothing_pending(w):
    """immediate_exit with nothing pending: EINTR, and exit_reason is not touched."""
    cpu = w.cpu()
    cpu.load(code.INC_RBX + code.MARKER, rbx=0x40)
    cpu.scribble(PAGE.EXIT_REASON, 0x55)
    equal(_immediate(cpu), errno.EINTR)
    equal(cpu.word(PAGE.EXIT_REASON), 0x55555555)
    equal((cpu.regs.rip, cpu.regs.rbx), (CODE, 0x40))


@contextmanager
def _signal_for_kvm_run_alone(cpu):
    """Block SIGNAL here and let it through during KVM_RUN; then take it if it is pending."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    cpu.vcpu.set_signal_mask(())
    try:
        yield
    finally:
        cpu.vcpu.set_signal_mask(None)
        if SIGNAL in signal.sigpending():
            signal.sigwait({SIGNAL})
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@item("C-089")
def pending_signal(w):
    """With a signal pending, the access completes first; then EINTR with exit_reason 10."""
    cpu = w.cpu()
    cpu.start_rdmsr(X, then=code.INC_RBX, rbx=0x40).answer(5)
    with _signal_for_kvm_run_alone(cpu):
        signal.pthread_kill(threading.get_ident(), SIGNAL)
        equal(cpu.raw_run(), errno.EINTR)
    equal(cpu.word(PAGE.EXIT_REASON), ExitReason.INTR)
    equal((cpu.regs.rip, cpu.regs.rax, cpu.regs.rbx), (CODE + 2, 5, 0x40))
    equal(cpu.finish(), DONE)


@item("C-091")
def later_signal(w):
    """A signal that comes while the guest runs: EINTR, exit_reason 10, no trace of the access."""
    cpu = w.cpu()
    cpu.load(code.RDMSR + code.SPIN, rcx=X)
    equal(cpu.raw_run(), 0)
    with _signal_for_kvm_run_alone(cpu):
        me = threading.get_ident()
        timer = threading.Timer(A_WHILE, signal.pthread_kill, (me, SIGNAL))
        timer.start()
        try:
            equal(cpu.raw_run(), errno.EINTR)
        finally:
            timer.join()  # while the signal is blocked: it would end the process
    equal(cpu.word(PAGE.EXIT_REASON), ExitReason.INTR)
    equal(cpu.regs.rip, CODE + 2)


@item("C-092")
def immediate_exit_is_sampled(w):
    """immediate_exit set by another thread while KVM_RUN runs does not end that KVM_RUN."""
    cpu = w.cpu()
    cpu.load(code.loop(code.INC_RBX))
    returned = []
    runner = threading.Thread(target=lambda: returned.append(cpu.raw_run()))
    runner.start()
    time.sleep(A_WHILE)
    cpu.scribble(PAGE.IMMEDIATE_EXIT, 1)
    time.sleep(A_WHILE)
    early = list(returned)
    cpu.vcpu.kick()
    runner.join()
    cpu.scribble(PAGE.IMMEDIATE_EXIT, 0)
    equal(early, [], "KVM_RUN returned without a signal")
    equal(returned, [errno.EINTR])
