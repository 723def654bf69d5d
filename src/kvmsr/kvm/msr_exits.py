# SPDX-License-Identifier: Apache-2.0
"""
MSR exits
---------

An RDMSR or WRMSR that KVM leaves to user space. It must be answered, exactly once, before the vCPU
runs on: KVM has already written "no error, value 0" where the answer belongs, and would take
silence for that. :class:`PendingMsr` is where the answer goes, and all that an exit needs to know
of its vCPU.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final, NoReturn

from kvmsr.abi import MsrExitReason
from kvmsr.errors import ExitAnsweredError, UsageError

__all__ = ("MsrExit", "PendingMsr", "Rdmsr", "Wrmsr")

_U64: Final = (1 << 64) - 1


class PendingMsr:
    """
    A vCPU's place for an MSR access: the fields in its kvm_run page, and the exit made of them.

    :ivar vcpu_id: the vCPU's number, for messages.
    :ivar msr: the ``msr`` part of the kvm_run page.
    :ivar exit: the exit that has no answer yet; None if there is none.
    """

    __slots__ = ("exit", "msr", "vcpu_id")

    def __init__(self, vcpu_id: int, msr: Any) -> None:
        self.vcpu_id = vcpu_id
        self.msr = msr
        self.exit: MsrExit | None = None

    def rdmsr(self) -> "Rdmsr":
        """Read a KVM_EXIT_X86_RDMSR off the page."""
        msr = self.msr
        # Not by the class's constructor: this is on the way of every access, and half the price.
        exit_ = _new(Rdmsr)
        exit_._pending = self
        exit_.index = msr.index
        exit_.reason = _reason(msr.reason)
        self.exit = exit_
        return exit_

    def wrmsr(self) -> "Wrmsr":
        """Read a KVM_EXIT_X86_WRMSR off the page."""
        msr = self.msr
        exit_ = Wrmsr(self, msr.index, _reason(msr.reason), msr.data)
        self.exit = exit_
        return exit_


class MsrExit:
    """
    An MSR access of the guest that KVM gave up: either :class:`Rdmsr` or :class:`Wrmsr`.

    :ivar index: the MSR, 0 to 2**32 - 1.
    :ivar reason: why KVM gave it up.
    """

    __slots__ = ("_pending", "index", "reason")

    op: ClassVar[str]

    def __init__(self, pending: PendingMsr, index: int, reason: MsrExitReason) -> None:
        self._pending = pending
        self.index = index
        self.reason = reason

    def fault(self) -> None:
        """
        Let the instruction raise #GP(0) in the guest.

        :raises ExitAnsweredError: if this exit has been answered already.
        """
        pending = self._pending
        if pending.exit is not self:
            self._refuse()
        pending.msr.error = 1
        pending.exit = None

    def _refuse(self) -> NoReturn:
        raise ExitAnsweredError(
            f"{self.op} of MSR {self.index:#x} on vCPU {self._pending.vcpu_id} has been answered"
            " already"
        )


class Rdmsr(MsrExit):
    """RDMSR: to be answered with a value or a fault."""

    __slots__ = ()

    op = "RDMSR"

    def answer(self, value: int) -> None:
        """
        Give the guest *value* in EDX:EAX.

        :param value: 0 to 2**64 - 1.
        :raises UsageError: if it is out of range; the exit is then still to be answered.
        :raises ExitAnsweredError: if this exit has been answered already.
        """
        if not 0 <= value <= _U64:
            raise UsageError(f"RDMSR of MSR {self.index:#x}: {value:#x} does not fit 64 bits")
        pending = self._pending
        if pending.exit is not self:
            self._refuse()
        pending.msr.data = value  # first, because it fails where *value* is not a number
        pending.exit = None

    def __repr__(self) -> str:
        return f"Rdmsr(index={self.index:#x}, reason={self.reason.name})"


class Wrmsr(MsrExit):
    """WRMSR of :attr:`value`: to be answered with done or a fault."""

    __slots__ = ("value",)

    op = "WRMSR"

    def __init__(self, pending: PendingMsr, index: int, reason: MsrExitReason, value: int) -> None:
        super().__init__(pending, index, reason)
        self.value = value

    def done(self) -> None:
        """
        Let the instruction end well.

        :raises ExitAnsweredError: if this exit has been answered already.
        """
        pending = self._pending
        if pending.exit is not self:
            self._refuse()
        pending.exit = None

    def __repr__(self) -> str:
        return f"Wrmsr(index={self.index:#x}, value={self.value:#x}, reason={self.reason.name})"


_new: Final[Callable[[type[Rdmsr]], Rdmsr]] = object.__new__

_reason: Final = {0: MsrExitReason(0), **{int(r): r for r in MsrExitReason}}.__getitem__
"""
KVM sets exactly one of the reasons it was asked for; looking it up is cheaper than making it. (None
at all is what the interface had to say before it was merged: the soft backend can be such a KVM.)
"""
