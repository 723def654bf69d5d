# SPDX-License-Identifier: Apache-2.0
"""
Hypercalls
----------

VMCALL and VMMCALL as kvm_emulate_hypercall of arch/x86/kvm/x86.c takes them
(Documentation/virt/kvm/x86/hypercalls.rst): the number in RAX, arguments in RBX, RCX, RDX and RSI.
"""

from collections.abc import Callable
from typing import Final

from kvmsr.backend.soft.irqchip.message import REMOTE_READ, Message
from kvmsr.backend.soft.msr.pv import has_pv_feature
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("kvm_emulate_hypercall",)

_RAX, _RCX, _RDX, _RBX, _RSI = 0, 1, 2, 3, 6
_EPERM, _EINVAL, _EOPNOTSUPP, _ENOSYS = -1, -22, -95, -1000  # <linux/kvm_para.h>
_VAPIC_POLL_IRQ, _KICK_CPU, _CLOCK_PAIRING, _SEND_IPI, _SCHED_YIELD = 1, 5, 9, 10, 11
_UNHALT, _PV_SEND_IPI, _PV_SCHED_YIELD = 7, 11, 13  # features, as bits of KVM's CPUID leaf
_ICR_LOGICAL_OR_SHORTHAND: Final = 1 << 11 | 3 << 18
_LOW: Final = 0xFFFF_FFFF
_U64: Final = (1 << 64) - 1

_Arguments = tuple[int, int, int, int]


def kvm_emulate_hypercall(vcpu: Vcpu) -> None:
    """Do the hypercall that the registers ask for; its result is in RAX afterwards."""
    regs, wide = vcpu.cpu.regs, vcpu.cpu.long_code
    mask = _U64 if wide else _LOW
    number, *arguments = (regs[each] & mask for each in (_RAX, _RBX, _RCX, _RDX, _RSI))
    if vcpu.cpu.cpl:
        result = _EPERM
    else:
        call = _CALLS.get(number)
        a0, a1, a2, a3 = arguments
        result = call(vcpu, (a0, a1, a2, a3)) if call is not None else _ENOSYS
    regs[_RAX] = result & mask


def _nothing(_vcpu: Vcpu, _arguments: _Arguments) -> int:
    return 0


def _clock_pairing(_vcpu: Vcpu, _arguments: _Arguments) -> int:
    return _EOPNOTSUPP  # as on hosts whose own clock is not the TSC


def _kick(vcpu: Vcpu, arguments: _Arguments) -> int:
    """End another vCPU's HLT (kvm_pv_kick_cpu_op)."""
    if not has_pv_feature(vcpu, _UNHALT):
        return _ENOSYS
    chip = vcpu.vm.chip
    if chip is not None:
        with vcpu.vm.lock:
            chip.send(Message(0, REMOTE_READ, arguments[1], False, False, False))
    return 0


def _send_ipi(vcpu: Vcpu, arguments: _Arguments) -> int:
    """Send an IPI to the local APICs of a bitmap; return to how many (kvm_pv_send_ipi)."""
    low, high, least, icr = arguments
    chip, size = vcpu.vm.chip, 64 if vcpu.cpu.long_code else 32
    if not has_pv_feature(vcpu, _PV_SEND_IPI):
        return _ENOSYS
    if icr & _ICR_LOGICAL_OR_SHORTHAND:
        return _EINVAL
    if chip is None:
        return _EOPNOTSUPP
    bitmap, least = low | high << size, least & _LOW
    message = Message.of_icr(icr & _LOW, 0, wide=True)
    with vcpu.vm.lock:
        return sum(
            lapic.accept(message)
            for lapic in chip.lapics
            if lapic.id >= least and bitmap >> lapic.id - least & 1
        )


def _yield(vcpu: Vcpu, _arguments: _Arguments) -> int:
    return 0 if has_pv_feature(vcpu, _PV_SCHED_YIELD) else _ENOSYS


_CALLS: Final[dict[int, Callable[[Vcpu, _Arguments], int]]] = {
    _VAPIC_POLL_IRQ: _nothing,
    _KICK_CPU: _kick,
    _CLOCK_PAIRING: _clock_pairing,
    _SEND_IPI: _send_ipi,
    _SCHED_YIELD: _yield,
}
