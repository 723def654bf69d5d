# SPDX-License-Identifier: Apache-2.0
"""
Recent accesses
---------------

The last accesses to MSRs that somebody watches while the guest runs.
"""

import time
from collections import deque
from collections.abc import Collection
from typing import Any, Final, NamedTuple, Self

from kvmsr.dispatch import Outcome, Verdict
from kvmsr.policy import Access, Op, Reason

__all__ = ("MAX_RECENT", "Recent", "RecentAccesses")

MAX_RECENT: Final = 64


class Recent(NamedTuple):
    """
    An access that was answered a short while ago.

    :ivar time: when it was answered, in seconds since the epoch.
    :ivar vm: the VM's number in the run.
    :ivar value: the value read or written; None if a read returned none.
    """

    time: float
    vm: int
    vcpu: int
    op: Op
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is not needed here
    value: int | None
    reason: Reason
    verdict: Verdict
    rule: str

    @classmethod
    def of(
        cls, when: float, vm: int, vcpu: int, op: Op, index: int, value: int, reason: Reason,
        verdict: Verdict, rule: str,
    ) -> Self:  # fmt: skip
        """Return an access; *value* means nothing if it is a read that returned none."""
        has_value = op == Op.WRITE or verdict is Verdict.VALUE
        return cls(when, vm, vcpu, op, index, value if has_value else None, reason, verdict, rule)

    def as_dict(self) -> dict[str, Any]:
        """Return the access in its JSON form."""
        return {
            "time": self.time,
            "vm": self.vm,
            "vcpu": self.vcpu,
            "op": str(self.op),
            "value": None if self.value is None else f"{self.value:#x}",
            "reason": str(self.reason),
            "outcome": self.verdict.value,
            "rule": self.rule,
        }


class RecentAccesses:
    """
    Keeps the last accesses of one vCPU to some MSRs.

    The vCPU's thread adds them; any other may look at them, and say which MSRs are wanted.

    :param vm: the VM's number.
    """

    def __init__(self, vm: int) -> None:
        self._vm = vm
        self._kept: dict[int, deque[Recent]] = {}

    def want(self, indices: Collection[int]) -> None:
        """Keep the accesses to these MSRs from now on, and to no others."""
        kept = self._kept
        self._kept = {index: kept.get(index) or deque(maxlen=MAX_RECENT) for index in indices}

    def add(self, access: Access, outcome: Outcome, began_ns: int) -> None:
        """Keep an access that is answered now, if its MSR is wanted."""
        vcpu, op, index, value, reason, _ = access
        kept = self._kept.get(index)
        if kept is not None:
            verdict, rule, answer = outcome
            value = answer if verdict is Verdict.VALUE else value
            kept.append(
                Recent.of(time.time(), self._vm, vcpu, op, index, value, reason, verdict, rule)
            )

    def of(self, index: int) -> list[Recent]:
        """Return the accesses to an MSR, in order."""
        return list(self._kept.get(index, deque()).copy())
