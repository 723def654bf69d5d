# SPDX-License-Identifier: Apache-2.0
"""
Kernel facts
------------

What a plan needs to know about the KVM that it is compiled for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Self

from kvmsr.msr import HandledRange, handled
from kvmsr.policy.access import Op

__all__ = ("MAX_RANGES", "MAX_RANGE_MSRS", "KernelFacts")

# KVM's own limits. tests/policy/plan/test_facts.py compares them with kvmsr.abi, which must not be
# imported here.
MAX_RANGES: Final = 16
MAX_RANGE_MSRS: Final = 0x3000


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """
    What is known about a KVM.

    :ivar handled: the MSRs that it may handle itself, as ranges in ascending order with gaps
        between them. Listing too many is harmless, but costs filter ranges; a plan relies on KVM
        not knowing those that are not listed.
    :ivar ignore_msrs: whether the host's ``kvm.ignore_msrs`` is on. KVM then swallows accesses to
        MSRs that it does not know (reads return 0), unless the filter denies them.
    """

    handled: tuple[HandledRange, ...] = field(default_factory=handled)
    ignore_msrs: bool = False

    def ranges(self, op: Op) -> list[tuple[int, int]]:
        """Return the MSRs that this KVM may handle for *op*, as ranges in ascending order."""
        if op == Op.READ:
            return [(r.first, r.last) for r in self.handled if r.reads]
        return [(r.first, r.last) for r in self.handled if r.writes]

    def knows(self, index: int) -> bool:
        """Return whether this KVM may handle MSR *index*."""
        return any(one.first <= index <= one.last for one in self.handled)

    def knowing(self, indices: Iterable[int]) -> Self:
        """Return these facts with *indices* added to the MSRs that KVM handles, for both ops."""
        extra = [HandledRange(index, index, True, True) for index in indices]
        return replace(self, handled=_apart([*self.handled, *extra]))


def _apart(ranges: list[HandledRange]) -> tuple[HandledRange, ...]:
    """Return *ranges* in ascending order and without overlaps; overlapping ones are united."""
    borders = sorted({r.first for r in ranges} | {r.last + 1 for r in ranges})
    united: list[HandledRange] = []
    for start, end in pairwise(borders):
        over = [r for r in ranges if r.first <= start and end - 1 <= r.last]
        if over:
            reads, writes = any(r.reads for r in over), any(r.writes for r in over)
            united.append(HandledRange(start, end - 1, reads, writes))
    return tuple(united)
