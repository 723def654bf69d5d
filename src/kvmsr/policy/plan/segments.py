# SPDX-License-Identifier: Apache-2.0
"""
Segments
--------

The 2**32 MSRs, cut where anything changes: which rules apply, and whether KVM may handle them. A
plan is worked out over these few segments, never over single indices.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

from kvmsr.msr import X2APIC
from kvmsr.policy.access import Op
from kvmsr.policy.plan.facts import KernelFacts
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule
from kvmsr.policy.selector import MAX_INDEX

__all__ = ("Segment", "Table", "cut")


class Segment(NamedTuple):
    """
    MSRs *first* to *last*, which are all alike in one direction.

    :ivar rules: the rules to try in turn. Only the last one can be without a condition. Empty for
        x2APIC, which no rule can take from KVM.
    :ivar known: whether KVM may handle these MSRs itself.
    :ivar observed: whether accesses are taken from KVM to be seen, whatever the rules are.
    """

    first: int
    last: int
    rules: tuple[Rule, ...]
    known: bool
    observed: bool = False


class Table:
    """The segments of one direction, from 0 to 2**32 - 1 without gaps."""

    __slots__ = ("segments", "starts")

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.starts = [segment.first for segment in segments]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

    def find(self, index: int) -> Segment:
        """Return the segment that contains MSR *index*."""
        return self.segments[bisect_right(self.starts, index) - 1]


def cut(
    policy: Policy, op: Op, kernel: KernelFacts, observed: Sequence[tuple[int, int]] = ()
) -> Table:
    """
    Return the segments of *policy* for *op*.

    :param observed: what is taken from KVM to be seen, as ranges in ascending order.
    """
    rules = [rule for rule in policy.rules if rule.action(op) is not None and not rule.never]
    spans = [(f, last, n) for n, rule in enumerate(rules) for f, last in rule.msrs]
    spans.sort()
    known = kernel.ranges(op)
    borders = {0, X2APIC[0], X2APIC[1] + 1, MAX_INDEX}
    for first, last, *_ in (*spans, *known, *observed):
        borders.add(first)
        borders.add(last + 1)
    borders.discard(MAX_INDEX + 1)
    starts = sorted(borders)

    segments: list[Segment] = []
    # The spans that contain the current segment: by rule number, and again by where they end.
    open_: list[int] = []
    ends: list[tuple[int, int]] = []
    next_span = 0
    in_known, in_observed = _Walk(known), _Walk(observed)
    for start, end in zip(starts, [*starts[1:], MAX_INDEX + 1], strict=True):
        while ends and ends[0][0] < start:
            del open_[bisect_left(open_, heapq.heappop(ends)[1])]
        while next_span < len(spans) and spans[next_span][0] <= start:
            _, last, number = spans[next_span]
            insort(open_, number)
            heapq.heappush(ends, (last, number))
            next_span += 1
        in_x2apic = X2APIC[0] <= start <= X2APIC[1]
        tried = () if in_x2apic else _tried(rules, open_)
        segments.append(Segment(start, end - 1, tried, in_known.has(start), in_observed.has(start)))
    return Table(segments)


class _Walk:
    """Walks over ranges, which are in ascending order."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._next = 0

    def has(self, index: int) -> bool:
        """Return whether *index*, which is higher than the last one, is in a range."""
        ranges = self._ranges
        while self._next < len(ranges) and ranges[self._next][1] < index:
            self._next += 1
        return self._next < len(ranges) and ranges[self._next][0] <= index


def _tried(rules: Sequence[Rule], numbers: Sequence[int]) -> tuple[Rule, ...]:
    """Return the rules with these numbers, up to and including the first without a condition."""
    tried = []
    for number in numbers:
        tried.append(rules[number])
        if rules[number].when is None:
            break
    return tuple(tried)
