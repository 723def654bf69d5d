# SPDX-License-Identifier: Apache-2.0
"""
The rows of a summary
---------------------
"""

from dataclasses import asdict, dataclass
from typing import Any

from kvmsr.msr import catalog
from kvmsr.policy import Where

__all__ = ("Moment", "TraceRow", "in_hex", "named")


@dataclass(frozen=True, slots=True)
class Moment:
    """
    When something happened.

    :ivar time_ns: on the host's clock, in nanoseconds since the epoch.
    :ivar guest_ns: on the VM's clock, in nanoseconds since its guest began.
    """

    time_ns: int
    guest_ns: int


@dataclass(frozen=True, slots=True)
class TraceRow:
    """
    The accesses to one MSR in one direction, for one reason, under one rule.

    :ivar index: the MSR; None for those that found no row of their own.
    :ivar op: ``read`` or ``write``.
    :ivar reason: why KVM gave the accesses up.
    :ivar rule: what decided them.
    :ivar vm: the VM; None unless vCPUs have rows of their own.
    :ivar vcpu: the vCPU; None unless vCPUs have rows of their own.
    :ivar outcomes: by outcome, the number of accesses.
    :ivar counted: the number of accesses among them that were only counted.
    :ivar first: the first access.
    :ivar last: the last access.
    :ivar first_value: the first value read or written; None if there was none.
    :ivar last_value: the last value read or written; None if there was none.
    :ivar latency: by percentile, the latency in nanoseconds, to within 3 %; None if not recorded.
    :ivar asker: who asked: a function or an address; "" if the callers are not known.
    :ivar paths: the most frequent paths to the accesses, each with RIP and callers, and their
        counts; empty if they were not recorded.
    """

    index: int | None
    op: str
    reason: str
    rule: str
    vm: int | None
    vcpu: int | None
    outcomes: dict[str, int]
    counted: int
    first: Moment
    last: Moment
    first_value: int | None
    last_value: int | None
    latency: dict[int, int] | None
    asker: str
    paths: tuple[tuple[Where, int], ...]

    @property
    def count(self) -> int:
        """Return the number of accesses."""
        return sum(self.outcomes.values())

    @property
    def faults(self) -> int:
        """Return the number of accesses that got #GP."""
        return self.outcomes["fault"]

    def as_dict(self) -> dict[str, Any]:
        """Return the row in the form of the JSON summary."""
        who = {} if self.vcpu is None else {"vm": self.vm, "vcpu": self.vcpu}
        return {
            "index": in_hex(self.index),
            "name": "" if self.index is None else catalog().name(self.index),
            "op": self.op,
            **who,
            "count": self.count,
            "counted_only": self.counted,
            "reason": self.reason,
            "rule": self.rule,
            "outcomes": self.outcomes,
            "first_value": in_hex(self.first_value),
            "last_value": in_hex(self.last_value),
            "first": asdict(self.first),
            "last": asdict(self.last),
            "latency_ns": named(self.latency),
            "asker": self.asker,
            "rips": [_path(where, count) for where, count in self.paths],
        }


def _path(where: Where, count: int) -> dict[str, Any]:
    callers = [
        {"address": f"{one:#x}", "guess": bool(where.guesses >> number & 1)}
        for number, one in enumerate(where.callers)
    ]
    return {"rip": in_hex(where.rip), "count": count, "callers": callers}


def in_hex(value: int | None) -> str | None:
    """Return a number as JSON has it; None for None."""
    return None if value is None else f"{value:#x}"


def named(latency: dict[int, int] | None) -> dict[str, int] | None:
    """Return latencies by percentile as JSON has them; None for None."""
    return None if latency is None else {f"p{one}": ns for one, ns in latency.items()}
