# SPDX-License-Identifier: Apache-2.0
"""
The filter compiler
-------------------

KVM decides on an access to MSR *i* in direction *d* as follows. 0x800 to 0x8ff are always allowed.
Otherwise, the first range that applies to *d* and contains *i* decides, by its bit for *i*. If no
range does, the default decides. There are at most 16 ranges. Each applies to reads, to writes or to
both, starts anywhere, and covers at most 0x3000 MSRs. (Linux arch/x86/kvm, ``kvm_msr_allowed``.)
Given what a policy wants for every MSR in both directions, this module finds the fewest ranges that
make KVM decide that way.

*Wants.* For each MSR and direction: ALLOW, DENY, or ANY if it does not matter. The 2**32 MSRs are
given as runs with equal wants.

*The default.* Both defaults are tried, and the one that takes fewer ranges wins. For a given
default, an MSR *needs* a range in a direction if its want there is neither ANY nor the default. For
all others it is enough that no range decides against their want.

*The ranges.* Call a range for one direction R or W, and a shared one S. Three observations keep the
search small and its result optimal:

1. R and W ranges can come before all S ranges. A range for one direction can be given exactly the
   wanted bit for every MSR in it, so letting it decide first does no harm.
2. An S range has a single bit for both directions. Where the two wants differ and neither is ANY,
   one of them is the default, and the S range decides against one of the two unless an R or W range
   before it covers the MSR. So the wants of an MSR demand the following of the ranges that cover
   it::

       only reads need a range, writes are ANY          S or R
       only writes need a range, reads are ANY          S or W
       both need one (so both wants are equal)          S or (R and W)
       reads need one, writes want the default          R or (S and W)
       writes need one, reads want the default          W or (S and R)

   Each of these is *monotone*: covering the MSR with another range never breaks it.
3. Therefore ranges can have full length. Two ranges of one kind need not overlap: move the second
   one up to the end of the first, and they cover more. And going upwards, a range can be moved up
   until it starts at the first MSR whose demand fails without it, as everything below is satisfied
   already.

So the search goes upwards. At the first MSR whose demand fails it starts an R, a W or an S range,
and repeats. What happens above depends only on where the last range of each kind ends. These three
ends are the state, and a breadth-first search over states finds the fewest ranges. A state is
dropped if another one with as many ranges reaches at least as far in every kind.

In the end each range is cut down to the last MSR in it that needs one, and the bits are written.
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
    """What KVM should decide for an MSR and direction."""

    ALLOW = "allow"
    DENY = "deny"
    ANY = "any"


class Run(NamedTuple):
    """
    MSRs *first* to *last*, with the same wants.

    :ivar read: the want for reads.
    :ivar write: the want for writes.
    :ivar lean_read: the preferred bit where the want for reads is ANY and a range covers the MSR.
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
    A range of the filter: MSRs *base* to *base* + *count* - 1, for reads, writes, or both.

    :ivar bitmap: bit k, counting from the lowest bit of the first byte, is 1 if MSR *base* + k is
        allowed.
    """

    base: int
    count: int
    reads: bool
    writes: bool
    bitmap: bytes

    def allows(self, index: int) -> bool:
        """Return the bit of MSR *index*, which must be in the range."""
        offset = index - self.base
        return bool(self.bitmap[offset // 8] >> offset % 8 & 1)


@dataclass(frozen=True, slots=True)
class Filter:
    """The argument of KVM_X86_SET_MSR_FILTER: a default, and ranges of which the first wins."""

    default_deny: bool = False
    ranges: tuple[FilterRange, ...] = ()

    def decide(self, op: Op, index: int) -> tuple[bool, int | None]:
        """
        Return whether KVM denies *op* on MSR *index*, and the number of the range that decides.

        The number is None if no range does: the default decides, or the MSR is never filtered.
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
    """There is no such filter: these MSRs are left over when all ranges are used up."""

    left: tuple[tuple[int, int], ...]


# What an MSR demands of the ranges that cover it: see point 2 above. Indexed by the kinds that do:
# S is 1, R is 2, W is 4.
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
    Return the smallest filter that satisfies *runs*, or what does not fit.

    :param runs: in ascending order, from 0 to 2**32 - 1 without gaps.
    :param max_ranges: KVM's limit; tests use smaller ones.
    :param max_msrs: KVM's limit for one range; tests use smaller ones.
    """
    found: list[Filter] = []
    misfit: Misfit | None = None
    for default in (Want.ALLOW, Want.DENY):
        demands = _demands(runs, default)
        placed = _search(demands, max_ranges, max_msrs)
        if isinstance(placed, Misfit):
            misfit = misfit or placed  # prefer that of the default ALLOW: it lists MSRs with rules
            continue
        cut_down = [_cut_down(one, demands) for one in placed]
        cut_down.sort(key=lambda one: (one.kind == _S, one.base))
        ranges = [_write(one, cut_down, runs) for one in cut_down]
        if default is Want.DENY and not ranges:
            # KVM demands at least one range with this default: give it one that it never uses.
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

    Within a run, only the MSR at which a range ends can be the first to fail.
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
            if index == MAX_INDEX:  # no range can cover it: its end would not fit in 32 bits
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
    """Drop each state that another one reaches at least as far as in every kind."""
    kept: list[_State] = []
    for state in sorted(states, reverse=True):
        if not any(all(a >= b for a, b in zip(other, state, strict=True)) for other in kept):
            kept.append(state)
    return {state: states[state] for state in kept}


def _cut_down(one: _Placed, demands: Sequence[_Demand]) -> _Placed:
    """Return range *one*, cut down to the last MSR in it that needs a range."""
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
