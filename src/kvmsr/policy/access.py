# SPDX-License-Identifier: Apache-2.0
"""
Accesses
--------

One RDMSR or WRMSR that reached user space, and how a handler answers it.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

__all__ = ("Access", "Fault", "Handler", "Op", "Reason")


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


class Access(NamedTuple):
    """
    One RDMSR or WRMSR that reached user space.

    :ivar vcpu: number of the vCPU, from 0.
    :ivar op: read or write.
    :ivar index: index of the MSR, 0 to 2**32 - 1.
    :ivar value: the value that the guest writes, 0 to 2**64 - 1; 0 for a read.
    :ivar reason: why KVM handed it to user space.
    """

    vcpu: int
    op: Op
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is not needed here
    value: int
    reason: Reason

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
