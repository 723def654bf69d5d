# SPDX-License-Identifier: Apache-2.0
"""
Kernel facts
------------

What a plan has to know of the KVM it is for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Self

from kvmsr.msr import HandledRange, handled
from kvmsr.policy.access import Op

__all__ = ("MAX_RANGES", "MAX_RANGE_MSRS", "KernelFacts")

# These two are KVM's; tests/policy/plan/test_facts.py holds them to kvmsr.abi, which this tower of
# the house does not import.
MAX_RANGES: Final = 16
MAX_RANGE_MSRS: Final = 0x3000


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """
    What is known of a KVM.

    :ivar handled: the MSRs it may handle itself, ascending and apart. Too many do no harm but cost
        filter ranges; of one that is missing here a plan expects that KVM does not know it.
    :ivar ignore_msrs: whether the host's ``kvm.ignore_msrs`` is on: accesses to MSRs that KVM does
        not know are then swallowed (reads give 0) unless the filter denies them.
    """

    handled: tuple[HandledRange, ...] = field(default_factory=handled)
    ignore_msrs: bool = False

    def ranges(self, op: Op) -> list[tuple[int, int]]:
        """Return the MSRs that this KVM may handle for *op*, as ranges, ascending and apart."""
        if op == Op.READ:
            return [(r.first, r.last) for r in self.handled if r.reads]
        return [(r.first, r.last) for r in self.handled if r.writes]

    def knowing(self, indices: Iterable[int]) -> Self:
        """Return these facts with *indices* among the MSRs that KVM handles, both ways."""
        extra = [HandledRange(index, index, True, True) for index in indices]
        return replace(self, handled=_apart([*self.handled, *extra]))


def _apart(ranges: list[HandledRange]) -> tuple[HandledRange, ...]:
    """Return *ranges* ascending and apart; where they overlap, each direction is united."""
    borders = sorted({r.first for r in ranges} | {r.last + 1 for r in ranges})
    united: list[HandledRange] = []
    for start, end in pairwise(borders):
        over = [r for r in ranges if r.first <= start and end - 1 <= r.last]
        if over:
            reads, writes = any(r.reads for r in over), any(r.writes for r in over)
            united.append(HandledRange(start, end - 1, reads, writes))
    return tuple(united)
