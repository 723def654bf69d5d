# SPDX-License-Identifier: Apache-2.0
"""
KVM_RUN
-------

The order of things on the way into the guest and out of it (kvm_arch_vcpu_ioctl_run and vcpu_run of
arch/x86/kvm/x86.c): what is pending is completed first, exactly once; only then ``immediate_exit``
counts, and only then anything is injected.
"""

import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from kvmsr.abi import ExitReason, Mp, SyncReg
from kvmsr.backend.soft import sync
from kvmsr.backend.soft.cpu.access import PortAccess
from kvmsr.backend.soft.debugging import SINGLESTEP
from kvmsr.backend.soft.hyperv.exits import exit_asked
from kvmsr.backend.soft.injection import inject
from kvmsr.backend.soft.io import drop_writes_of_ins, memory_access, memory_writes, port_access
from kvmsr.backend.soft.startup import accept_events
from kvmsr.backend.soft.vcpu import Vcpu
from kvmsr.backend.soft.watching import run_watched

__all__ = ("kvm_run",)

_RIP: Final = 16
_RF: Final = 1 << 16
_IF: Final = 1 << 9
_AT_INSTRUCTIONS: Final = frozenset(
    map(int, (ExitReason.IO, ExitReason.HLT, ExitReason.X86_RDMSR, ExitReason.X86_WRMSR))
)
_ALL: Final = int(SyncReg.REGS | SyncReg.SREGS | SyncReg.EVENTS)


def kvm_run(vcpu: Vcpu, serve: Callable[[], bool] | None = None) -> int:
    """
    Run the guest until user space is needed.

    :param serve: is asked about exits on the spot; see :class:`kvmsr.backend.ServesInPlace`.
    :raises OSError: EINTR after a kick or with ``immediate_exit``; EAGAIN when a vCPU that waited
        has been woken; EINVAL for register groups that do not exist.
    """
    vcpu.kicked = False
    run = vcpu.run
    immediate = run.immediate_exit  # sampled once: set later it is for the next time
    vcpu.thread = threading.get_ident()
    vcpu.signals.begin()
    try:
        if not vcpu.has_begun:
            with vcpu.vm.lock:
                vcpu.has_begun = True
                vcpu.vm.begin()
        if vcpu.mp_state == Mp.UNINITIALIZED:
            _wait_for_start(vcpu, immediate)
        run.flags = 0
        if (run.kvm_valid_regs | run.kvm_dirty_regs) & ~_ALL:
            raise _error(errno.EINVAL)
        if run.kvm_dirty_regs:
            sync.load(vcpu)
        if vcpu.lapic is None and not vcpu.set_cr8(run.cr8):
            raise _error(errno.EINVAL)
        if not _complete(vcpu):
            return 0
        if immediate:
            raise _error(errno.EINTR)
        vcpu.has_run = True
        # Not where something has to happen between two KVM_RUN: handlers of signals run, registers
        # are passed in the page.
        if not vcpu.signals.holds_back and not run.kvm_valid_regs:
            if serve is not None and len(vcpu.vm.vcpus) > 1:
                serve = partial(vcpu.vm.execution.serving, serve)
            vcpu.serve = serve
        _loop(vcpu)
        return 0
    finally:
        vcpu.thread = 0
        vcpu.serve = None
        _leave(vcpu)
        vcpu.signals.end()


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _interrupted(vcpu: Vcpu) -> OSError:
    vcpu.run.exit_reason = ExitReason.INTR
    return _error(errno.EINTR)


def _complete(vcpu: Vcpu) -> bool:
    complete, vcpu.complete_emulation = vcpu.complete_emulation, None
    return complete is None or complete(vcpu)


def _leave(vcpu: Vcpu) -> None:
    run = vcpu.run
    flags = vcpu.cpu.state.eflags.value
    run.if_flag = bool(flags & _IF)
    run.cr8 = vcpu.get_cr8()
    run.apic_base = vcpu.apic_base
    run.ready_for_interrupt_injection = vcpu.lapic is not None or (
        vcpu.cpu.interruptible and vcpu.events.interrupt is None and vcpu.events.exception is None
    )
    if run.kvm_valid_regs:
        sync.store(vcpu)


def _loop(vcpu: Vcpu) -> None:
    vm = vcpu.vm
    while True:
        if vcpu.kicked or vcpu.signals.came():
            raise _interrupted(vcpu)
        with vm.lock:
            vcpu.wanted = False
            accept_events(vcpu)
            if vcpu.mp_state != Mp.RUNNABLE and not _block(vcpu):
                continue
            vm.timers.run()
            if vcpu.memory.update():
                vm.changed.notify_all()
            vm.hyperv.update(vm)
            if vcpu.hyperv.synic.active:
                vcpu.hyperv.stimers.process()
            if vcpu.hyperv.asked is not None:
                return exit_asked(vcpu)
            inject(vcpu)
        if not vcpu.events.shut_down and _enter_guest(vcpu):
            continue
        vcpu.emulation.knows_next_rip = vcpu.run.exit_reason in _AT_INSTRUCTIONS
        if vcpu.events.shut_down:
            vcpu.events.shut_down = False
            vcpu.run.exit_reason = ExitReason.SHUTDOWN
        return None


def _enter_guest(vcpu: Vcpu) -> bool:
    """Run the CPU; return whether the guest goes on."""
    if vcpu.wants_window:
        if vcpu.cpu.interruptible:
            vcpu.run.exit_reason = ExitReason.IRQ_WINDOW_OPEN
            return False
        vcpu.cpu.open_window()
    steps = vcpu.debugging.control & SINGLESTEP
    if steps:
        vcpu.debugging.begin_step()
    vcpu.page.exited = vcpu.emulation.knows_next_rip = False
    execution, entered_at = vcpu.vm.execution, vcpu.cpu.regs[_RIP]
    execution.take()
    try:
        if vcpu.events.nmi_waits_for_shadow:  # nothing reports its end
            if vcpu.cpu.step():
                vcpu.skipped()
        elif vcpu.debugging.watched:
            run_watched(vcpu)
        else:
            vcpu.cpu.watch({})
            vcpu.cpu.run()
    finally:
        execution.pass_on()
    if steps:
        vcpu.debugging.end_step()
    if vcpu.cpu.regs[_RIP] != entered_at:
        # An instruction is over, which ends RF; the engine does so at the end of a block only.
        vcpu.cpu.state.eflags.value &= ~_RF
    access = vcpu.cpu.access
    if vcpu.cpu.writes:
        if isinstance(access, PortAccess):
            drop_writes_of_ins(vcpu, access)
        if vcpu.cpu.writes:
            return memory_writes(vcpu, vcpu.cpu.writes)
    if access is not None:
        if isinstance(access, PortAccess):
            return port_access(vcpu, access)
        return memory_access(vcpu, access)
    waits = vcpu.complete_emulation is not None
    return not (waits or vcpu.page.exited or vcpu.events.shut_down)


def _block(vcpu: Vcpu) -> bool:
    """
    Wait in HLT, or for INIT or SIPI, under the VM's lock; return whether the guest goes on.

    If all vCPUs wait, time moves to the next timer.
    """
    vm = vcpu.vm
    with vm.idle():
        while not (vcpu.kicked or vcpu.signals.came()):
            vm.timers.run()
            accept_events(vcpu)
            if vcpu.mp_state == Mp.HALTED and vcpu.runnable():
                vcpu.mp_state = Mp.RUNNABLE
                vcpu.events.unhalted = False
            if vcpu.mp_state == Mp.RUNNABLE:
                vm.woke_up()
                return True
            vm.report_sleep()
            if not vcpu.kicked:
                vm.wait_for_change(vcpu)
    return False


def _wait_for_start(vcpu: Vcpu, immediate: int) -> None:
    """A vCPU that waits for INIT and SIPI: KVM_RUN blocks, and then returns to be called again."""
    if immediate:
        raise _error(errno.EINTR)
    with vcpu.vm.lock:
        _block(vcpu)
    raise _interrupted(vcpu) if vcpu.kicked else _error(errno.EAGAIN)
