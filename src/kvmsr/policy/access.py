# SPDX-License-Identifier: Apache-2.0
"""
Accesses
--------

One RDMSR or WRMSR that reached user space, and what a handler may say to it.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

__all__ = ("Access", "Fault", "Handler", "Op", "Reason")


class Op(enum.StrEnum):
    """What the guest did."""

    __hash__ = str.__hash__  # an enumeration's own is Python: slow, on the way of every access

    READ = "read"
    WRITE = "write"


class Reason(enum.StrEnum):
    """
    Why KVM gave the access up.

    ``unknown``: KVM has never heard of the MSR. ``invalid``: it knows the MSR and refuses the
    value or the mode. ``filter``: the plan's filter denies it.
    """

    __hash__ = str.__hash__

    UNKNOWN = "unknown"
    INVALID = "invalid"
    FILTER = "filter"


class Access(NamedTuple):
    """
    One RDMSR or WRMSR that reached user space.

    :ivar vcpu: the vCPU's number, from 0.
    :ivar op: read or write.
    :ivar index: the MSR, 0 to 2**32 - 1.
    :ivar value: what the guest writes, 0 to 2**64 - 1; 0 for a read.
    :ivar reason: why KVM gave it up.
    """

    vcpu: int
    op: Op
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    value: int
    reason: Reason

    def __str__(self) -> str:
        value = f" = {self.value:#x}" if self.op == Op.WRITE else ""
        return f"{self.op} of MSR {self.index:#x}{value} on vCPU {self.vcpu}"


class Fault(Exception):
    """Raised by a handler so that the guest gets #GP(0)."""


Handler = Callable[[Access], int | None]
"""
A function that answers accesses: the value for a read, None for a write, or it raises Fault.

It is called in the thread of the vCPU that waits, several at a time if the guest has several.
"""
