# SPDX-License-Identifier: Apache-2.0
"""
A vCPU's state in structures
----------------------------

What KVM_GET_REGS and its kin give and take, whether by ioctl or in the kvm_run page:
kvm_vcpu_ioctl_x86_{get,set}_vcpu_events and their neighbours in arch/x86/kvm/x86.c.
"""

import errno
import os
from typing import Any, Final

from kvmsr.backend.soft.cpu import registers
from kvmsr.backend.soft.debugging import SINGLESTEP, TF
from kvmsr.backend.soft.msr.access import MsrRet
from kvmsr.backend.soft.msr.common import set_apic_base
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = (
    "get_events",
    "get_regs",
    "get_sregs",
    "get_sregs2",
    "set_events",
    "set_regs",
    "set_sregs",
    "set_sregs2",
)

_RIP: Final = 16
_CR0_PG: Final = 1 << 31
_CR4_PAE: Final = 1 << 5
_LME, _LMA = 1 << 8, 1 << 10

_NMI, _SHADOW, _SMM = 1, 4, 8
_VALID: Final = _NMI | _SHADOW | _SMM
_KNOWN: Final = 0x3F
_NMI_VECTOR: Final = 2
_STI_SHADOW, _ANY_SHADOW = 2, 3
_SOFT: Final = (3, 4)
"""#BP and #OF: the instruction that raises them is executed again, so they do not show."""


def get_regs(vcpu: Vcpu, regs: Any) -> None:
    """Fill a struct kvm_regs; the debugger's single step does not show."""
    registers.get_regs(vcpu.cpu, regs)
    if vcpu.debugging.control & SINGLESTEP:
        regs.rflags &= ~TF


def set_regs(vcpu: Vcpu, regs: Any) -> None:
    """Take a struct kvm_regs; an exception that is pending is dropped."""
    if regs.rip != vcpu.cpu.regs[_RIP]:
        vcpu.cpu.flush_code()  # who sets RIP may have put code there
    registers.set_regs(vcpu.cpu, regs)
    vcpu.regs_changes += 1
    vcpu.events.drop_pending()


def get_sregs(vcpu: Vcpu, sregs: Any) -> None:
    """Fill a struct kvm_sregs."""
    get_sregs2(vcpu, sregs)
    sregs.interrupt_bitmap[:] = [0] * 4
    vector = vcpu.events.interrupt
    if vector is not None:
        sregs.interrupt_bitmap[vector // 64] = 1 << vector % 64


def get_sregs2(vcpu: Vcpu, sregs: Any) -> None:
    """Fill a struct kvm_sregs2; the PDPTRs are left out."""
    registers.get_sregs(vcpu.cpu, sregs)
    sregs.cr8, sregs.apic_base = vcpu.get_cr8(), vcpu.apic_base


def set_sregs(vcpu: Vcpu, sregs: Any) -> None:
    """
    Take a struct kvm_sregs.

    :raises OSError: EINVAL for a state that no CPU can be in.
    """
    set_sregs2(vcpu, sregs)
    for word, bits in enumerate(sregs.interrupt_bitmap):
        if bits and vcpu.lapic is None:
            vcpu.events.interrupt = word * 64 + bits.bit_length() - 1


def set_sregs2(vcpu: Vcpu, sregs: Any) -> None:
    """
    Take a struct kvm_sregs2.

    :raises OSError: EINVAL for a state that no CPU can be in.
    """
    if not _is_valid(vcpu, sregs) or set_apic_base(vcpu, sregs.apic_base, True) != MsrRet.OK:
        raise _invalid()
    registers.set_sregs(vcpu.cpu, sregs)
    vcpu.cpu.flush_code()
    vcpu.set_cr8(sregs.cr8)  # an illegal one is passed over


def _is_valid(vcpu: Vcpu, sregs: Any) -> bool:
    """kvm_is_valid_sregs of the kernel."""
    if sregs.cr0 >> 32 or sregs.cr4 & vcpu.cpuid.cr4_reserved:
        return False
    if sregs.cr0 & _CR0_PG and not sregs.cr0 & 1:
        return False
    if sregs.efer & _LME and sregs.cr0 & _CR0_PG:
        return bool(sregs.cr4 & _CR4_PAE and sregs.efer & _LMA)
    return not (sregs.efer & _LMA or sregs.cs.l)


def get_events(vcpu: Vcpu, events: Any) -> None:
    """Fill a struct kvm_vcpu_events."""
    own = vcpu.events
    last, exception = own.last, events.exception
    if own.exception is not None and last.vector not in _SOFT:
        exception.injected, exception.pending = 1, int(not last.from_user)
    exception.nr, exception.has_error_code = last.vector, last.has_error_code
    exception.error_code = last.error_code
    events.interrupt.injected = int(own.interrupt is not None)
    events.interrupt.nr = last.interrupt
    by_svm = vcpu.vm.profile.completion == "svm"  # it does not know whose shadow it is
    events.interrupt.shadow = (_ANY_SHADOW if by_svm else _STI_SHADOW) if vcpu.cpu.shadow else 0
    events.nmi.pending, events.nmi.masked = bool(own.nmis), vcpu.cpu.nmi_masked
    events.sipi_vector = 0
    events.flags = _VALID


def set_events(vcpu: Vcpu, events: Any) -> None:
    """
    Take a struct kvm_vcpu_events.

    :raises OSError: EINVAL for what does not exist.
    """
    own, exception = vcpu.events, events.exception
    last = own.last
    if events.flags & ~_KNOWN or (
        exception.injected and (exception.nr > 31 or exception.nr == _NMI_VECTOR)
    ):
        raise _invalid()
    code = exception.error_code if exception.has_error_code else None
    own.exception = (exception.nr, code) if exception.injected else None
    last.vector, last.has_error_code = exception.nr, exception.has_error_code
    last.error_code, last.from_user = exception.error_code, bool(exception.injected)
    last.interrupt = events.interrupt.nr
    if vcpu.lapic is None:
        own.interrupt = last.interrupt if events.interrupt.injected else None
    if events.flags & _SHADOW:
        vcpu.cpu.shadow = bool(events.interrupt.shadow)
    if events.flags & _NMI:
        own.nmis = int(events.nmi.pending)
    vcpu.cpu.nmi_masked = bool(events.nmi.masked)


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
