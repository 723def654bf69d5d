# SPDX-License-Identifier: Apache-2.0
"""
Accesses
--------

One RDMSR or WRMSR that reached user space, and how a handler answers it.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

__all__ = ("Access", "Fault", "Handler", "Op", "Reason", "Where")


class Op(enum.StrEnum):
    """What the guest did."""

    __hash__ = str.__hash__  # enum's own is written in Python, and too slow for every access

    READ = "read"
    WRITE = "write"


class Reason(enum.StrEnum):
    """
    Why KVM handed the access to user space.

    ``unknown``: KVM does not know the MSR. ``invalid``: KVM knows the MSR, but rejects the value or
    the mode. ``filter``: the plan's filter denies the access.
    """

    __hash__ = str.__hash__

    UNKNOWN = "unknown"
    INVALID = "invalid"
    FILTER = "filter"


class Where(NamedTuple):
    """
    Where the guest was.

    :ivar rip: the address of its instruction.
    :ivar cpl: its privilege level.
    :ivar callers: the return addresses of the functions that called the one with the instruction,
        the nearest first.
    :ivar guesses: a bit for each of the callers, the lowest for the first: it was found on the
        stack, behind a CALL, but nothing says that it is not left from an earlier call.
    """

    rip: int
    cpl: int = 0
    callers: tuple[int, ...] = ()
    guesses: int = 0

    def passes(self, first: int, last: int) -> bool:
        """Return whether the instruction, or a call that led there, is in this range."""
        # A call ends where it returns to. That may be where the next function begins.
        return first <= self.rip <= last or any(first < one <= last + 1 for one in self.callers)

    def __str__(self) -> str:
        callers = [
            f"{caller:#x}{'?' * (self.guesses >> number & 1)}"
            for number, caller in enumerate(self.callers)
        ]
        return " ← ".join([f"{self.rip:#x}", *callers])


class Access(NamedTuple):
    """
    One RDMSR or WRMSR that reached user space.

    :ivar vcpu: number of the vCPU, from 0.
    :ivar op: read or write.
    :ivar index: index of the MSR, 0 to 2**32 - 1.
    :ivar value: the value that the guest writes, 0 to 2**64 - 1; 0 for a read.
    :ivar reason: why KVM handed it to user space.
    :ivar where: where the guest was, if that is recorded (``--trace-rip``, ``--trace-callers``).
    """

    vcpu: int
    op: Op
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is not needed here
    value: int
    reason: Reason
    where: Where | None = None

    @property
    def rip(self) -> int | None:
        """Return the address of the guest's instruction, if it is recorded."""
        return None if self.where is None else self.where.rip

    @property
    def callers(self) -> tuple[int, ...]:
        """Return the callers of the guest's function, the nearest first, as far as recorded."""
        return () if self.where is None else self.where.callers

    def __str__(self) -> str:
        value = f" = {self.value:#x}" if self.op == Op.WRITE else ""
        return f"{self.op} of MSR {self.index:#x}{value} on vCPU {self.vcpu}"


class Fault(Exception):
    """Raised by a handler to inject #GP(0) into the guest."""


Handler = Callable[[Access], int | None]
"""
A function that answers an access: it returns the value for a read and None for a write, or raises
:class:`Fault`.

It is called in the thread of the vCPU that waits for the answer, so a guest with several vCPUs may
call it several times at once.
"""
