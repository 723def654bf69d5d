# SPDX-License-Identifier: Apache-2.0
"""
What waits for a vCPU
---------------------

KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS: exceptions, interrupts and NMIs that are to be
injected, and what holds them off.
"""

import errno
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("get_events", "set_events")

_EVENT_NMI, _EVENT_SIPI, _EVENT_SHADOW, _EVENT_SMM = 1, 2, 4, 8
_EVENTS_VALID: Final = _EVENT_NMI | _EVENT_SHADOW | _EVENT_SMM
_EVENTS_KNOWN: Final = 0x3F


def get_events(vcpu: "Vcpu", events: Any) -> None:
    """Fill a struct kvm_vcpu_events."""
    if vcpu.exception is not None:
        vector, code = vcpu.exception
        exception = events.exception
        exception.injected = exception.pending = 1
        exception.nr, exception.has_error_code = vector, code is not None
        exception.error_code = code or 0
    if vcpu.queued_interrupt is not None:
        events.interrupt.injected, events.interrupt.nr = 1, vcpu.queued_interrupt
    events.interrupt.shadow = int(vcpu.cpu.shadow)
    events.nmi.pending, events.nmi.masked = bool(vcpu.nmi_pending), vcpu.cpu.nmi_masked
    events.sipi_vector = 0
    events.flags = _EVENTS_VALID


def set_events(vcpu: "Vcpu", events: Any) -> None:
    """Take a struct kvm_vcpu_events; raises EINVAL for what does not exist."""
    exception = events.exception
    queued = exception.injected or exception.pending
    if events.flags & ~_EVENTS_KNOWN or (queued and exception.nr > 31):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    code = exception.error_code if exception.has_error_code else None
    vcpu.exception = (exception.nr, code) if queued else None
    if vcpu.lapic is None:
        injected = events.interrupt.injected
        vcpu.queued_interrupt = events.interrupt.nr if injected else None
    if events.flags & _EVENT_SHADOW:
        vcpu.cpu.shadow = bool(events.interrupt.shadow)
    if events.flags & _EVENT_NMI:
        vcpu.nmi_pending = int(events.nmi.pending)
    vcpu.cpu.nmi_masked = bool(events.nmi.masked)
