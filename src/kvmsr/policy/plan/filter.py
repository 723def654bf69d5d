# SPDX-License-Identifier: Apache-2.0
"""
The filter compiler
-------------------

KVM decides about an access of direction *d* to MSR *i* like this: 0x800 to 0x8ff are allowed;
else the first range that is for *d* and holds *i* says, by its bit; else the default says. There
are 16 ranges at most; each is for reads, for writes or for both, starts anywhere and holds at most
0x3000 MSRs. (Linux arch/x86/kvm, ``kvm_msr_allowed``.) This module finds, for what a policy wants
of every MSR in both directions, the fewest ranges that make KVM decide so.

*What is wanted.* For each MSR and direction: ALLOW, DENY, or ANY where both come to the same. The
2**32 MSRs come as runs of equal want.

*Which default.* Both are tried; fewer ranges win. With a default fixed, an MSR and direction whose
want is neither ANY nor the default *needs* a range; the others only must not be harmed.

*Which ranges.* Call a range for one direction R or W, and a shared one S. Three observations make
the search small and its result the best there is:

1. R and W ranges may stand before all S ranges. A one-direction range can hold exactly what is
   wanted of every MSR in it, so to let it decide first never harms.
2. An S range has one bit for both directions. Where the two wants differ, one of them is the
   default; the S range harms one side, unless an R or W range stands before it there. With that,
   what each MSR asks of the ranges over it is, by its two wants::

       only reads need a range, writes do not care      S or R
       only writes need a range, reads do not care      S or W
       both need one (then both wants are equal)        S or (R and W)
       reads need one, writes want the default          R or (S and W)
       writes need one, reads want the default          W or (S and R)

   Every line is *monotone*: another range over the MSR never breaks it.
3. So ranges can be full-length, two of one kind need not overlap (move the second behind the
   first, they hold more), and going upwards, a range can be moved up to start at the first MSR
   whose demand fails without it: what lies below is content already.

Hence: go up; at the first MSR that fails, start an R, a W or an S range there; repeat. What is
still to come depends only on where the last range of each kind ends, so that is the state, and a
breadth-first search over states finds the fewest ranges; states that reach no further than another
of the same count in any kind are dropped.

In the end each range is cut down to the last MSR that needs any, and the bits are written.
"""

import enum
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kvmsr.msr import X2APIC
from kvmsr.policy.access import Op
from kvmsr.policy.plan.facts import MAX_RANGE_MSRS, MAX_RANGES
from kvmsr.policy.selector import MAX_INDEX

__all__ = ("Filter", "FilterRange", "Misfit", "Run", "Want", "compile_filter")


class Want(enum.Enum):
    """What is wanted of KVM for an MSR and direction."""

    ALLOW = "allow"
    DENY = "deny"
    ANY = "any"


class Run(NamedTuple):
    """
    MSRs *first* to *last*, all alike.

    :ivar read: what is wanted for reads.
    :ivar write: what is wanted for writes.
    :ivar lean_read: the bit to write where nothing is wanted of reads but a range is there anyway.
    :ivar lean_write: the same for writes.
    """

    first: int
    last: int
    read: Want
    write: Want
    lean_read: bool = True
    lean_write: bool = True


@dataclass(frozen=True, slots=True)
class FilterRange:
    """
    MSRs *base* to *base* + *count* - 1 of the filter, for reads, for writes, or for both.

    :ivar bitmap: bit k, lowest first in each byte, is 1 where MSR *base* + k is allowed.
    """

    base: int
    count: int
    reads: bool
    writes: bool
    bitmap: bytes

    def allows(self, index: int) -> bool:
        """Return the bit of MSR *index*, which must lie in the range."""
        offset = index - self.base
        return bool(self.bitmap[offset // 8] >> offset % 8 & 1)


@dataclass(frozen=True, slots=True)
class Filter:
    """What KVM_X86_SET_MSR_FILTER gets: a default and ranges, the first of which wins."""

    default_deny: bool = False
    ranges: tuple[FilterRange, ...] = ()

    def decide(self, op: Op, index: int) -> tuple[bool, int | None]:
        """
        Return whether KVM denies *op* on MSR *index*, and the number of the range that says so.

        The number is None where no range is asked: the default decides, or nothing is filtered.
        """
        if X2APIC[0] <= index <= X2APIC[1]:
            return False, None
        for number, one in enumerate(self.ranges):
            direction = one.reads if op == Op.READ else one.writes
            if direction and one.base <= index < one.base + one.count:
                return not one.allows(index), number
        return self.default_deny, None


@dataclass(frozen=True, slots=True)
class Misfit:
    """No filter does it: these MSRs, as ranges, are left over when the ranges are used up."""

    left: tuple[tuple[int, int], ...]


# What an MSR asks of the ranges over it: see point 2 above. Indexed by the bits "an S range is
# here" 1, "R" 2, "W" 4.
_READS: Final = tuple(bool(c & 1 or c & 2) for c in range(8))
_WRITES: Final = tuple(bool(c & 1 or c & 4) for c in range(8))
_BOTH: Final = tuple(bool(c & 1 or c & 6 == 6) for c in range(8))
_READS_NOT_WRITES: Final = tuple(bool(c & 2 or c & 5 == 5) for c in range(8))
_WRITES_NOT_READS: Final = tuple(bool(c & 4 or c & 3 == 3) for c in range(8))

_S, _R, _W = range(3)
_State = tuple[int, int, int]  # where the last S, R and W range ends (exclusive)


class _Demand(NamedTuple):
    first: int
    last: int
    content: tuple[bool, ...]


class _Placed(NamedTuple):
    kind: int
    base: int
    end: int  # exclusive


def compile_filter(
    runs: Sequence[Run], *, max_ranges: int = MAX_RANGES, max_msrs: int = MAX_RANGE_MSRS
) -> Filter | Misfit:
    """
    Return the smallest filter that does what *runs* want, or what does not fit.

    :param runs: ascending, from 0 to 2**32 - 1, without gap.
    :param max_ranges: KVM's limit; smaller for tests.
    :param max_msrs: KVM's limit of one range; smaller for tests.
    """
    found: list[Filter] = []
    misfit: Misfit | None = None
    for default in (Want.ALLOW, Want.DENY):
        demands = _demands(runs, default)
        placed = _search(demands, max_ranges, max_msrs)
        if isinstance(placed, Misfit):
            misfit = misfit or placed  # that of the default ALLOW: it lists what has rules
            continue
        cut_down = [_cut_down(one, demands) for one in placed]
        cut_down.sort(key=lambda one: (one.kind == _S, one.base))
        ranges = [_write(one, cut_down, runs) for one in cut_down]
        if default is Want.DENY and not ranges:
            # KVM wants a range with this default: one that it never looks at.
            ranges = [FilterRange(X2APIC[0], 1, True, True, b"\x01")]
        found.append(Filter(default is Want.DENY, tuple(ranges)))
    if found:
        return min(found, key=lambda result: len(result.ranges))
    assert misfit is not None
    return misfit


def _demands(runs: Sequence[Run], default: Want) -> list[_Demand]:
    demands: list[_Demand] = []
    for run in runs:
        reads = run.read not in (Want.ANY, default)
        writes = run.write not in (Want.ANY, default)
        if reads and writes:
            content = _BOTH
        elif reads:
            content = _READS if run.write is Want.ANY else _READS_NOT_WRITES
        elif writes:
            content = _WRITES if run.read is Want.ANY else _WRITES_NOT_READS
        else:
            continue
        last = demands[-1] if demands else None
        if last and last.last + 1 == run.first and last.content is content:
            demands[-1] = _Demand(last.first, run.last, content)
        else:
            demands.append(_Demand(run.first, run.last, content))
    return demands


def _covered(state: _State, index: int) -> int:
    return (index < state[_S]) | (index < state[_R]) << 1 | (index < state[_W]) << 2


def _first_failing(demands: Sequence[_Demand], at: int, state: _State) -> tuple[int, int] | None:
    """
    Return the first MSR, from demand number *at* on, whose demand fails, and that demand's number.

    What is over an MSR changes only where a range ends: no other place within a run can be first.
    """
    for number in range(at, len(demands)):
        first, last, content = demands[number]
        for index in sorted({first, *(end for end in state if first < end <= last)}):
            if not content[_covered(state, index)]:
                return index, number
    return None


def _search(
    demands: Sequence[_Demand], max_ranges: int, max_msrs: int
) -> tuple[_Placed, ...] | Misfit:
    furthest = 0
    frontier: dict[_State, tuple[int, tuple[_Placed, ...]]] = {(0, 0, 0): (0, ())}
    for _ in range(max_ranges + 1):
        following: dict[_State, tuple[int, tuple[_Placed, ...]]] = {}
        for state, (at, placed) in frontier.items():
            failing = _first_failing(demands, at, state)
            if failing is None:
                return placed
            index, number = failing
            furthest = max(furthest, index)
            if index == MAX_INDEX:  # no range can hold it: its end would not fit 32 bits
                continue
            end = min(index + max_msrs, MAX_INDEX)
            for kind in (_S, _R, _W):
                if index >= state[kind]:
                    ends = [end if kind == other else state[other] for other in (_S, _R, _W)]
                    after = (ends[_S], ends[_R], ends[_W])
                    following.setdefault(after, (number, (*placed, _Placed(kind, index, end))))
        frontier = _best(following)
    left = ((max(d.first, furthest), d.last) for d in demands if d.last >= furthest)
    return Misfit(tuple(left))


def _best(
    states: dict[_State, tuple[int, tuple[_Placed, ...]]],
) -> dict[_State, tuple[int, tuple[_Placed, ...]]]:
    """Drop states that reach no further than another in any kind."""
    kept: list[_State] = []
    for state in sorted(states, reverse=True):
        if not any(all(a >= b for a, b in zip(other, state, strict=True)) for other in kept):
            kept.append(state)
    return {state: states[state] for state in kept}


def _cut_down(one: _Placed, demands: Sequence[_Demand]) -> _Placed:
    """Return range *one* without what follows the last MSR in it that needs a range."""
    last = demands[bisect_right(demands, one.end - 1, key=lambda d: d.first) - 1].last
    return one._replace(end=min(one.end, last + 1))


def _write(one: _Placed, placed: Sequence[_Placed], runs: Sequence[Run]) -> FilterRange:
    """Return range *one* with its bits."""
    count = one.end - one.base
    bits = 0
    number = bisect_right(runs, one.base, key=lambda run: run.first) - 1
    while number < len(runs) and runs[number].first < one.end:
        run = runs[number]
        first, last = max(run.first, one.base), min(run.last, one.end - 1)
        for start, end in _pieces(first, last, placed):
            if _bit(one.kind, start, run, placed):
                bits |= ((1 << end - start + 1) - 1) << start - one.base
        number += 1
    return FilterRange(
        one.base,
        count,
        reads=one.kind != _W,
        writes=one.kind != _R,
        bitmap=bits.to_bytes((count + 7) // 8, "little"),
    )


def _pieces(first: int, last: int, placed: Sequence[_Placed]) -> list[tuple[int, int]]:
    """Cut *first* to *last* where one-direction ranges begin or end."""
    cuts = {first}
    for other in placed:
        if other.kind != _S:
            cuts.update(c for c in (other.base, other.end) if first < c <= last)
    starts = sorted(cuts)
    ends = [start - 1 for start in starts[1:]]
    return list(zip(starts, [*ends, last], strict=True))


def _bit(kind: int, index: int, run: Run, placed: Sequence[_Placed]) -> bool:
    """Return the bit of MSR *index* in a range of *kind*."""
    decides = []
    if kind == _R or (kind == _S and not _holds(placed, _R, index)):
        decides.append((run.read, run.lean_read))
    if kind == _W or (kind == _S and not _holds(placed, _W, index)):
        decides.append((run.write, run.lean_write))
    wanted = {want for want, _ in decides if want is not Want.ANY}
    if not wanted:
        return all(lean for _, lean in decides)
    assert len(wanted) == 1, "a shared range over an MSR whose wants differ"
    return wanted == {Want.ALLOW}


def _holds(placed: Sequence[_Placed], kind: int, index: int) -> bool:
    return any(other.kind == kind and other.base <= index < other.end for other in placed)
