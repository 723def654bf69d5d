# SPDX-License-Identifier: Apache-2.0
"""
The way of RDMSR and WRMSR
--------------------------

kvm_emulate_rdmsr and kvm_emulate_wrmsr of arch/x86/kvm/x86.c: the filter, the handlers, and, where
the access fails, user space or #GP. With the remarks of the original patch's review: what deflects
says so by a bool, the padding is cleared, and what is left to do is named for emulation, not I/O.

*An access that user space is asked about is not over.* The instruction is finished, or faults, at
the start of the next KVM_RUN (:attr:`MsrVcpu.complete_emulation`), exactly once, by what user space
has put into ``error`` and ``data`` by then. Until then registers show the state before it.

How the instruction is skipped differs. On Intel, the length that the exit reported is added to the
RIP at that time. AMD's hardware reports the next RIP, which is kept. The emulator keeps both the
next RIP and RFLAGS.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

from kvmsr.abi import ExitReason, MsrExitReason
from kvmsr.abi.run import Run
from kvmsr.backend.soft.msr.access import get_msr, set_msr
from kvmsr.backend.soft.msr.apic import TSC_DEADLINE
from kvmsr.backend.soft.msr.filter import READ, WRITE
from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.vcpu import RAX, RCX, RDX, RIP, MsrVcpu

__all__ = (
    "emulator_get_msr",
    "kvm_emulate_rdmsr",
    "kvm_emulate_wrmsr",
    "kvm_get_msr_with_filter",
    "kvm_msr_user_space",
    "kvm_set_msr_with_filter",
)

_GP: Final = 13
_RF: Final = 1 << 16
_LOW: Final = 0xFFFF_FFFF
_U64: Final = (1 << 64) - 1
_X2APIC_ICR: Final = 0x830
_ICR_SLOW: Final = 0x000C_0F00  # a shorthand, another delivery mode than fixed, logical
_BROADCAST: Final = 0xFFFF_FFFF

_REASONS: Final = (
    0, int(MsrExitReason.INVAL), int(MsrExitReason.UNKNOWN), int(MsrExitReason.FILTER),
)  # fmt: skip
"""By MsrRet."""

_RDMSR, _WRMSR = int(ExitReason.X86_RDMSR), int(ExitReason.X86_WRMSR)

_RECORD: Final = struct.Struct("<QIIQ")  # error and padding, reason, index, data: ExitMsr in one go
_RECORD_OFFSET: Final = Run.exit.offset

_Complete = Callable[[Any], bool]


def kvm_emulate_rdmsr(vcpu: MsrVcpu, length: int, *, emulated: bool = False) -> bool:
    """
    Do RDMSR, whose *length* in bytes includes prefixes and at which RIP stands.

    :param emulated: in KVM's emulator, whatever the profile.
    :return: whether the guest goes on; False: user space has something to do.
    """
    cpu = vcpu.cpu
    if cpu.cpl:
        return _inject_gp(vcpu)
    index = cpu.regs[RCX] & _LOW
    result, value = kvm_get_msr_with_filter(vcpu, index)
    if not result:
        _load(vcpu, value)
        return _skip(vcpu, _next_rip(vcpu, length))
    if kvm_msr_user_space(vcpu, _RDMSR, index, 0, _complete_rdmsr, result):
        _defer(vcpu, length, emulated)
        return False
    return _inject_gp(vcpu)


def kvm_emulate_wrmsr(vcpu: MsrVcpu, length: int, *, emulated: bool = False) -> bool:
    """Do WRMSR; see :func:`kvm_emulate_rdmsr`."""
    cpu = vcpu.cpu
    if cpu.cpl:
        return _inject_gp(vcpu)
    regs = cpu.regs
    index, value = regs[RCX] & _LOW, (regs[RDX] & _LOW) << 32 | regs[RAX] & _LOW
    if index in vcpu.vm.profile.fastpath and not emulated and _fastpath(vcpu, index, value):
        return _skip(vcpu, _next_rip(vcpu, length))
    result = kvm_set_msr_with_filter(vcpu, index, value)
    if not result:
        return _skip(vcpu, _next_rip(vcpu, length))
    if kvm_msr_user_space(vcpu, _WRMSR, index, value, _complete_wrmsr, result):
        _defer(vcpu, length, emulated)
        return False
    return _inject_gp(vcpu)


def kvm_get_msr_with_filter(vcpu: MsrVcpu, index: int) -> tuple[MsrRet, int]:
    """Read an MSR for the guest's RDMSR: one that is denied is not looked at."""
    msr_filter = vcpu.vm.msr_filter
    if msr_filter is not None and not msr_filter.allowed(index, READ):
        return MsrRet.FILTERED, 0
    return get_msr(vcpu, index, False)


def kvm_set_msr_with_filter(vcpu: MsrVcpu, index: int, value: int) -> MsrRet:
    """Write an MSR for the guest's WRMSR: one that is denied is not touched."""
    msr_filter = vcpu.vm.msr_filter
    if msr_filter is not None and not msr_filter.allowed(index, WRITE):
        return MsrRet.FILTERED
    return set_msr(vcpu, index, value, False)


def kvm_msr_user_space(
    vcpu: MsrVcpu, exit_reason: int, index: int, data: int, completion: _Complete, result: MsrRet
) -> bool:
    """
    Ask user space about an access that failed with *result*, if it wants to be asked.

    :param completion: what is left to do when it has answered.
    :return: whether it is asked; the kvm_run page says what.
    """
    reason = _REASONS[result]
    if not vcpu.vm.user_space_msr_mask & reason:
        return False
    run = vcpu.run
    run.exit_reason = exit_reason
    shown = 0 if vcpu.vm.profile.deflects == "all" else reason
    _RECORD.pack_into(run, _RECORD_OFFSET, 0, shown, index, data)
    vcpu.complete_emulation = completion
    return True


def emulator_get_msr(vcpu: MsrVcpu, index: int) -> tuple[MsrRet, int]:
    """Read an MSR inside another instruction, such as RDPID: unfiltered, and never deflected."""
    return get_msr(vcpu, index, False)


# Completion


def _defer(vcpu: MsrVcpu, length: int, emulated: bool) -> None:
    """Note where the instruction ends that goes to user space now."""
    style = "emulator" if emulated else vcpu.vm.profile.completion
    if style == "svm":
        vcpu.deferred = length, _next_rip(vcpu, length), None
    elif style == "vmx":
        vcpu.deferred = length, None, None
    else:
        vcpu.deferred = length, _next_rip(vcpu, length), vcpu.cpu.rflags & ~_RF


def _complete_rdmsr(vcpu: MsrVcpu) -> bool:
    return _complete(vcpu, True)


def _complete_wrmsr(vcpu: MsrVcpu) -> bool:
    return _complete(vcpu, False)


def _complete(vcpu: MsrVcpu, is_read: bool) -> bool:
    """Finish an instruction (complete_emulated_rdmsr and its kin)."""
    error_and_pad, _, _, data = _RECORD.unpack_from(vcpu.run, _RECORD_OFFSET)
    length, next_rip, flags = vcpu.deferred
    if error_and_pad & 0xFF:
        return _inject_gp(vcpu)
    if is_read:
        regs = vcpu.cpu.regs
        regs[RAX], regs[RDX] = data & _LOW, data >> 32
    if flags is not None:
        vcpu.cpu.rflags = flags
    return _skip(vcpu, _next_rip(vcpu, length) if next_rip is None else next_rip)


def _load(vcpu: MsrVcpu, value: int) -> None:
    regs = vcpu.cpu.regs
    regs[RAX], regs[RDX] = value & _LOW, value >> 32


def _next_rip(vcpu: MsrVcpu, length: int) -> int:
    return vcpu.cpu.regs[RIP] + length & (_U64 if vcpu.cpu.long_code else _LOW)


def _skip(vcpu: MsrVcpu, next_rip: int) -> bool:
    vcpu.cpu.regs[RIP] = next_rip
    return vcpu.skipped()


def _inject_gp(vcpu: MsrVcpu) -> bool:
    vcpu.queue_exception(_GP, 0)
    return True


# The WRMSR fast path, which neither asks the filter nor user space


def _fastpath(vcpu: MsrVcpu, index: int, value: int) -> bool:
    """Do a write that must not wait (handle_fastpath_set_msr_irqoff); return whether it was one."""
    lapic = vcpu.lapic
    if lapic is None:
        return False
    if index == TSC_DEADLINE:
        lapic.tsc_deadline = value
        return True
    is_plain = not value & _ICR_SLOW and value >> 32 != _BROADCAST
    return index == _X2APIC_ICR and is_plain and lapic.x2apic_write(index, value)
