# SPDX-License-Identifier: Apache-2.0
"""
Events
------

The exception and the interrupt that wait to be injected, and struct kvm_vcpu_events
(kvm_multiple_exception and kvm_vcpu_ioctl_x86_{get,set}_vcpu_events of arch/x86/kvm/x86.c).

An exception is *pending* until the guest is entered; one that user space sets is *injected*
already, which is why a KVM_SET_REGS drops the former and not the latter. What was injected last can
still be read: KVM does not wipe it out.
"""

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = (
    "LastEvents",
    "drop_pending",
    "get_events",
    "injected",
    "queue",
    "remember",
    "set_events",
)

_NMI, _SHADOW, _SMM = 1, 4, 8
_VALID: Final = _NMI | _SHADOW | _SMM
_KNOWN: Final = 0x3F
_NMI_VECTOR, _DF, _PF = 2, 8, 14
_STI_SHADOW, _ANY_SHADOW = 2, 3
_SOFT: Final = (3, 4)
"""#BP and #OF: the instruction that raises them is executed again, so they are not told."""
_WITH_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
_CONTRIBUTORY: Final = frozenset((0, 10, 11, 12, 13))


@dataclass(slots=True)
class LastEvents:
    """
    What the kernel's event structures hold, whether it still counts or not.

    :ivar from_user: the exception that waits was set by user space, so it is injected, not pending.
    """

    vector: int = 0
    has_error_code: int = 0
    error_code: int = 0
    interrupt: int = 0
    from_user: bool = False


def queue(vcpu: "Vcpu", vector: int, error_code: int | None) -> None:
    """Have an exception injected; with one that waits already it may become a double fault."""
    if vcpu.exception is not None:
        first = vcpu.exception[0]
        if first == _DF:
            vcpu.shut_down = True
            return
        contributory = vector in _CONTRIBUTORY
        if (first in _CONTRIBUTORY and contributory) or (
            first == _PF and (contributory or vector == _PF)
        ):
            vector, error_code = _DF, 0
    vcpu.exception = (vector, error_code)
    last = vcpu.last_events
    last.vector, last.has_error_code = vector, int(error_code is not None)
    last.error_code, last.from_user = error_code or 0, False


def remember(vcpu: "Vcpu", vector: int, error_code: int) -> None:
    """An exception has been queued and injected at once."""
    has_code = vector in _WITH_CODE
    last = vcpu.last_events
    last.vector, last.error_code = vector, error_code if has_code else 0
    last.has_error_code = int(has_code)
    injected(vcpu)


def injected(vcpu: "Vcpu") -> None:
    """The exception goes into the guest now; real mode knows no error codes."""
    if not vcpu.cpu.state.cr[0] & 1:
        vcpu.last_events.has_error_code = 0


def drop_pending(vcpu: "Vcpu") -> None:
    """Drop an exception that user space has not set itself."""
    if not vcpu.last_events.from_user:
        vcpu.exception = None


def get_events(vcpu: "Vcpu", events: Any) -> None:
    """Fill a struct kvm_vcpu_events."""
    last = vcpu.last_events
    exception = events.exception
    if vcpu.exception is not None and last.vector not in _SOFT:
        exception.injected, exception.pending = 1, int(not last.from_user)
    exception.nr, exception.has_error_code = last.vector, last.has_error_code
    exception.error_code = last.error_code
    events.interrupt.injected = int(vcpu.queued_interrupt is not None)
    events.interrupt.nr = last.interrupt
    by_svm = vcpu.vm.profile.completion == "svm"  # it cannot tell whose shadow it is
    events.interrupt.shadow = (_ANY_SHADOW if by_svm else _STI_SHADOW) if vcpu.cpu.shadow else 0
    events.nmi.pending, events.nmi.masked = bool(vcpu.nmi_pending), vcpu.cpu.nmi_masked
    events.sipi_vector = 0
    events.flags = _VALID


def set_events(vcpu: "Vcpu", events: Any) -> None:
    """
    Take a struct kvm_vcpu_events.

    :raises OSError: EINVAL for what does not exist.
    """
    exception, last = events.exception, vcpu.last_events
    if events.flags & ~_KNOWN or (
        exception.injected and (exception.nr > 31 or exception.nr == _NMI_VECTOR)
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    code = exception.error_code if exception.has_error_code else None
    vcpu.exception = (exception.nr, code) if exception.injected else None
    last.vector, last.has_error_code = exception.nr, exception.has_error_code
    last.error_code, last.from_user = exception.error_code, bool(exception.injected)
    last.interrupt = events.interrupt.nr
    if vcpu.lapic is None:
        vcpu.queued_interrupt = last.interrupt if events.interrupt.injected else None
    if events.flags & _SHADOW:
        vcpu.cpu.shadow = bool(events.interrupt.shadow)
    if events.flags & _NMI:
        vcpu.nmi_pending = int(events.nmi.pending)
    vcpu.cpu.nmi_masked = bool(events.nmi.masked)
