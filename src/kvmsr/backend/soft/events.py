# SPDX-License-Identifier: Apache-2.0
"""
Events
------

The exception, the NMIs and the interrupt that wait to be injected into a vCPU
(kvm_multiple_exception of arch/x86/kvm/x86.c).

An exception is *pending* until the guest is entered; one that user space sets is *injected*
already, which is why a KVM_SET_REGS drops the former and not the latter. What was injected last can
still be read: KVM does not wipe it out.
"""

from dataclasses import dataclass
from typing import Final

from kvmsr.backend.soft.cpu.engine import Engine

__all__ = ("Events", "LastEvents")

_DF, _PF = 8, 14
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


class Events:
    """
    What waits for a vCPU, apart from what its local APIC holds.

    :ivar exception: the exception to be injected, with its error code; None: none.
    :ivar last: what else is known of it, and of the interrupt before.
    :ivar interrupt: the vector that user space has queued (KVM_INTERRUPT); None: none.
    :ivar nmis: how many NMIs wait, 0 to 2.
    :ivar unhalted: the next HLT, or this one, ends at once (KVM_HC_KICK_CPU).
    :ivar shut_down: a triple fault is to be reported.
    """

    def __init__(self, cpu: Engine) -> None:
        self._cpu = cpu
        self.exception: tuple[int, int | None] | None = None
        self.last = LastEvents()
        self.interrupt: int | None = None
        self.nmis = 0
        self.unhalted = self.shut_down = False

    def reset(self) -> None:
        """Do RESET or INIT."""
        self.exception = None
        self.nmis = 0
        self._cpu.nmi_masked = False

    def queue(self, vector: int, error_code: int | None) -> None:
        """
        Have an exception injected before the guest's next instruction.

        With one that waits already it may become a double fault, or shut the guest down.
        """
        if self.exception is not None:
            first = self.exception[0]
            if first == _DF:
                self.shut_down = True
                return
            contributory = vector in _CONTRIBUTORY
            if (first in _CONTRIBUTORY and contributory) or (
                first == _PF and (contributory or vector == _PF)
            ):
                vector, error_code = _DF, 0
        self.exception = (vector, error_code)
        last = self.last
        last.vector, last.has_error_code = vector, int(error_code is not None)
        last.error_code, last.from_user = error_code or 0, False

    def take_exception(self) -> tuple[int, int | None]:
        """Return the exception that waits: it goes into the guest now."""
        assert self.exception is not None
        exception, self.exception = self.exception, None
        self._injected()
        return exception

    def remember(self, vector: int, error_code: int) -> None:
        """Take note of an exception that was queued and injected at once."""
        has_code = vector in _WITH_CODE
        last = self.last
        last.vector, last.error_code = vector, error_code if has_code else 0
        last.has_error_code = int(has_code)
        self._injected()

    def _injected(self) -> None:
        if not self._cpu.state.cr[0] & 1:  # real mode knows no error codes
            self.last.has_error_code = 0

    def drop_pending(self) -> None:
        """Drop an exception that user space has not set itself."""
        if not self.last.from_user:
            self.exception = None

    def add_nmi(self) -> None:
        """Have an NMI injected; of those that come while the guest handles one, one is kept."""
        self.nmis = min(self.nmis + 1, 1 if self._cpu.nmi_masked else 2)

    @property
    def nmi_is_deliverable(self) -> bool:
        """Whether an NMI waits, and not for the end of another."""
        return self.nmis > 0 and not self._cpu.nmi_masked

    @property
    def nmi_waits_for_shadow(self) -> bool:
        """Whether an NMI could be injected, but for the shadow of STI or MOV SS."""
        return self.nmis > 0 and self._cpu.shadow and not self._cpu.nmi_masked
