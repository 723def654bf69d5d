# SPDX-License-Identifier: Apache-2.0
"""
Injection
---------

Exceptions, interrupts and NMIs on their way into the guest (kvm_check_and_inject_events of
arch/x86/kvm/x86.c).
"""

from kvmsr.backend.soft.debugging import BLOCKIRQ
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("attend", "inject", "nmi_window")

_NMI = 2


def attend(vcpu: Vcpu, _info: int = 0) -> bool:
    """Look for what waits for the vCPU: timers, interrupts, whoever wants it to come out."""
    vm = vcpu.vm
    with vm.lock:
        vcpu.wanted = False
        vcpu.cpu.close_window()
        if vcpu.kicked or vcpu.signals.came() or vcpu.has_to_come_out:
            return False
        vm.timers.run()
        if not inject(vcpu):
            return False
    if vcpu.wants_window:
        if vcpu.cpu.interruptible:
            return False  # to user space
        vcpu.cpu.open_window()
    return True


def inject(vcpu: Vcpu) -> bool:
    """
    Inject what is pending and deliverable, and open windows for the rest; under the VM's lock.

    :return: False, if the guest has shut down, or is to execute just one instruction.
    """
    engine = vcpu.cpu
    collides = vcpu.events.exception is not None and vcpu.events.interrupt is not None
    if vcpu.events.exception is not None and not vcpu.emulation.raise_queued():
        return False
    if collides:  # user space's interrupt, which does not ask whether it may, does not get through
        if vcpu.vm.profile.completion == "svm":
            vcpu.events.interrupt = None
        return True
    if vcpu.lapic is None and vcpu.events.interrupt is not None:
        # It counts as injected already: it does not ask for IF, and the NMI comes on top of it.
        vector = vcpu.take_interrupt()
        if vector is not None and not vcpu.emulation.interrupt(vector):
            return False
    if vcpu.debugging.control & BLOCKIRQ:
        return True  # for as long as the debugger wants that
    if vcpu.events.nmis:
        if vcpu.events.nmi_waits_for_shadow:
            engine.close_nmi_window()
            return False
        if engine.nmi_masked:
            engine.open_nmi_window()
        else:
            vcpu.events.nmis -= 1
            engine.nmi_masked = True
            if not vcpu.emulation.interrupt(_NMI):
                return False
            if vcpu.events.nmis:
                engine.open_nmi_window()
    if not vcpu.has_interrupt():
        return True
    if engine.interruptible:
        vector = vcpu.take_interrupt()
        if vector is not None and not vcpu.emulation.interrupt(vector):
            return False
    if vcpu.has_interrupt():
        engine.open_window()
    return True


def nmi_window(vcpu: Vcpu, _info: int) -> bool:
    """The guest has ended its NMI handler, and another NMI waits."""
    with vcpu.vm.lock:
        vcpu.cpu.close_nmi_window()
        return inject(vcpu)
