# SPDX-License-Identifier: Apache-2.0
"""
Plans
-----

A policy compiled for a KVM: the reasons for which accesses come to user space, the filter, and the
tables by which an access finds its rules.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kvmsr.errors import FilterCapacityError
from kvmsr.msr import X2APIC, catalog
from kvmsr.msr.as_host import REFUSED
from kvmsr.policy.access import Op, Reason
from kvmsr.policy.plan.facts import MAX_RANGE_MSRS, MAX_RANGES, KernelFacts
from kvmsr.policy.plan.filter import Filter, Misfit, Run, Want, compile_filter
from kvmsr.policy.plan.lint import Lint, lint_policy, x2apic_errors
from kvmsr.policy.plan.observe import NO_ROOM, NotObserved, Span, by_reason, clusters, spans
from kvmsr.policy.plan.segments import Segment, Table, cut
from kvmsr.policy.policy import Policy
from kvmsr.policy.selector import MAX_INDEX, Ranges

__all__ = ("Plan", "compile_policy")

_LISTED: Final = 12

_SPARE: Final = 4
"""Filter ranges that observing leaves free: another VMM may have a filter of its own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    A policy compiled for a KVM.

    :ivar policy: the policy that it was compiled from.
    :ivar kernel: the KVM that it was compiled for.
    :ivar reasons: the reasons for which KVM is to hand accesses over.
    :ivar filter: the argument of KVM_X86_SET_MSR_FILTER.
    :ivar reads: the segments for reads.
    :ivar writes: the segments for writes.
    :ivar lints: what the owner of the policy should know.
    :ivar not_observed: what the policy wants to observe, and what is left with KVM all the same.
    """

    policy: Policy
    kernel: KernelFacts
    reasons: frozenset[Reason]
    filter: Filter
    reads: Table
    writes: Table
    lints: tuple[Lint, ...]
    not_observed: tuple[NotObserved, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the lints as text, one line each."""
        return tuple(map(str, self.lints))

    def segment(self, op: Op, index: int) -> Segment:
        """Return the segment for *op* on MSR *index*: the rules to try, and what KVM knows."""
        return (self.reads if op == Op.READ else self.writes).find(index)

    def swallowed(self, segment: Segment) -> bool:
        """
        Return whether KVM would swallow accesses to *segment* if the filter did not deny them.

        kvm.ignore_msrs=1 does that to MSRs that KVM does not know. Rules must see such an access as
        unknown, although KVM hands it over as filtered.
        """
        return self.kernel.ignore_msrs and not segment.known

    def why_not_observed(self, op: Op, index: int) -> str:
        """Return why an access that the policy wants to observe is left with KVM, or ""."""
        return next(
            (
                one.why
                for one in self.not_observed
                if one.op is op and any(first <= index <= last for first, last in one.msrs)
            ),
            "",
        )

    def relied_on(self) -> Ranges:
        """
        Return the MSRs that have a rule but no filter range, as no KVM is known to handle them.

        Whoever runs the plan can ask the KVM at hand, and compile the policy again with
        :meth:`KernelFacts.knowing` if it does handle some.
        """
        if self.kernel.ignore_msrs:
            return ()
        found = {
            (segment.first, segment.last)
            for op, table in ((Op.READ, self.reads), (Op.WRITE, self.writes))
            for segment in table.segments
            if not segment.known and _is_ours(segment, op)
        }
        return tuple(sorted(found))


def compile_policy(policy: Policy, kernel: KernelFacts | None = None) -> Plan:
    """
    Return the plan by which *kernel* decides as *policy* wants, for every MSR and direction.

    :param kernel: by default, any KVM from Linux 5.10 on.
    :raises FilterCapacityError: if the policy needs more than KVM's 16 ranges; lists the MSRs that
        do not fit.
    :raises PolicyError: if a rule asks for something that KVM cannot do.
    """
    kernel = kernel or KernelFacts()
    for error in x2apic_errors(policy):
        raise error
    made = _Draft.of(policy, kernel, _Watched((), ()))
    if isinstance(made.filter, Misfit):
        raise FilterCapacityError(
            _say_misfit(made.filter, made.reads, made.writes), file=policy.source
        )
    lints = tuple(lint_policy(policy, kernel, made.reads, made.writes))
    left: tuple[NotObserved, ...] = ()
    if policy.observe:
        made, left = _observing(policy, kernel, made)
    assert isinstance(made.filter, Filter)
    denies = made.filter.default_deny or bool(made.filter.ranges)
    reasons = {Reason.UNKNOWN, Reason.INVALID} | ({Reason.FILTER} if denies else set())
    return Plan(
        policy, kernel, frozenset(reasons), made.filter, made.reads, made.writes, lints, left
    )


class _Watched(NamedTuple):
    """What a policy wants to observe, of reads and of writes."""

    reads: Sequence[Span]
    writes: Sequence[Span]

    def without(self, rooms: Sequence[tuple[int, int]]) -> "_Watched":
        """Return the same, but with nothing observed outside of *rooms*."""

        def fitted(one: Span) -> Span:
            fits = any(first <= one.first and one.last <= last for first, last in rooms)
            return one if fits or one.why else one._replace(why=NO_ROOM)

        return _Watched([fitted(one) for one in self.reads], [fitted(one) for one in self.writes])


class _Draft(NamedTuple):
    """The parts of a plan that depend on what is observed."""

    reads: Table
    writes: Table
    filter: Filter | Misfit

    @classmethod
    def of(
        cls, policy: Policy, kernel: KernelFacts, watched: _Watched, most: int = MAX_RANGES
    ) -> "_Draft":
        """Return the parts, if no more than *most* filter ranges may be used."""
        reads = cut(policy, Op.READ, kernel, _observed(watched.reads))
        writes = cut(policy, Op.WRITE, kernel, _observed(watched.writes))
        return cls(reads, writes, compile_filter(_runs(reads, writes, kernel), max_ranges=most))


def _observed(found: Sequence[Span]) -> list[tuple[int, int]]:
    return [(one.first, one.last) for one in found if not one.why]


def _observing(
    policy: Policy, kernel: KernelFacts, plain: _Draft
) -> tuple[_Draft, tuple[NotObserved, ...]]:
    """
    Return *plain* with what can be observed, and what cannot.

    Observing must not cost the rules, or another VMM's own filter, their room.
    """
    assert isinstance(plain.filter, Filter)
    watched = _Watched(*(spans(policy, op, kernel.ranges(op)) for op in Op))
    most = max(len(plain.filter.ranges), MAX_RANGES - _SPARE)
    made = _Draft.of(policy, kernel, watched, most)
    if isinstance(made.filter, Misfit):
        made, watched = _as_far_as_it_fits(policy, kernel, watched, most)
    return made, by_reason(_left(made, watched))


def _as_far_as_it_fits(
    policy: Policy, kernel: KernelFacts, watched: _Watched, most: int
) -> tuple[_Draft, _Watched]:
    kept: list[tuple[int, int]] = []
    for cluster in clusters([*watched.reads, *watched.writes]):
        tried = _Draft.of(policy, kernel, watched.without([*kept, cluster]), most)
        if isinstance(tried.filter, Filter):
            kept.append(cluster)
    fitting = watched.without(kept)
    return _Draft.of(policy, kernel, fitting, most), fitting


def _left(made: _Draft, watched: _Watched) -> Iterator[tuple[Op, int, int, str]]:
    """Yield what is left with KVM and never seen: no rule takes it, and KVM does not refuse it."""
    for op, table, found in (
        (Op.READ, made.reads, watched.reads), (Op.WRITE, made.writes, watched.writes),
    ):  # fmt: skip
        for one in found:
            number = bisect_right(table.starts, one.first) - 1
            while one.why not in ("", REFUSED) and number < len(table.segments):
                segment = table.segments[number]
                if segment.first > one.last:
                    break
                if not _is_ours(segment, op):
                    first, last = max(segment.first, one.first), min(segment.last, one.last)
                    yield op, first, last, one.why
                number += 1


def _is_ours(segment: Segment, op: Op) -> bool:
    """Return whether accesses to *segment* are taken from KVM: by a rule, or to be seen."""
    return segment.observed or any(rule.asks_for(op) for rule in segment.rules)


_Wanted = tuple[Want, bool]


def _wants(table: Table, op: Op, kernel: KernelFacts) -> list[_Wanted]:
    """Return the want of each segment of *table*, and the preferred bit where it is ANY."""
    found: list[_Wanted] = []
    # Most segments have no rule, or one without a condition, and few different wants.
    by_kind: dict[tuple[bool, bool], _Wanted] = {}
    for segment in table.segments:
        first, _, rules, known, observed = segment
        if len(rules) > 1 or X2APIC[0] <= first <= X2APIC[1] or (rules and rules[0].when):
            found.append(_want(segment, op, kernel))
            continue
        kind = (known, observed or (bool(rules) and rules[0].asks_for(op)))
        wanted = by_kind.get(kind)
        if wanted is None:
            wanted = by_kind[kind] = _want(segment, op, kernel)
        found.append(wanted)
    return found


def _want(segment: Segment, op: Op, kernel: KernelFacts) -> _Wanted:
    if X2APIC[0] <= segment.first <= X2APIC[1]:
        return Want.ANY, True
    ours = _is_ours(segment, op)
    if segment.known:
        return (Want.DENY if ours else Want.ALLOW), not ours
    # KVM does not know the MSR, so the access comes to user space either way ...
    if kernel.ignore_msrs:
        return Want.DENY, False  # ... except with this switch, unless the filter denies it.
    # If a rule asks for the reason, the reason must be right.
    reasons = [rule.when.reason for rule in segment.rules if rule.when and rule.when.reason]
    if any(Reason.FILTER in asked for asked in reasons):
        return Want.DENY, False
    return (Want.ALLOW, True) if reasons else (Want.ANY, not ours)


def _runs(reads: Table, writes: Table, kernel: KernelFacts) -> list[Run]:
    for_reads, for_writes = _wants(reads, Op.READ, kernel), _wants(writes, Op.WRITE, kernel)
    starts = sorted({*reads.starts, *writes.starts})
    runs: list[Run] = []
    read_number = write_number = 0
    for start, end in zip(starts, [*starts[1:], MAX_INDEX + 1], strict=True):
        read_number += reads.segments[read_number].last < start
        write_number += writes.segments[write_number].last < start
        read, read_bit = for_reads[read_number]
        write, write_bit = for_writes[write_number]
        if runs and runs[-1][2:] == (read, write, read_bit, write_bit):
            runs[-1] = Run(runs[-1].first, end - 1, read, write, read_bit, write_bit)
        else:
            runs.append(Run(start, end - 1, read, write, read_bit, write_bit))
    return runs


def _say_misfit(misfit: Misfit, reads: Table, writes: Table) -> str:
    said = []
    for first, last in misfit.left[:_LISTED]:
        name = catalog().name(first) if first == last else ""
        where = f"{first:#x}" if first == last else f"{first:#x}-{last:#x}"
        rules = _rules_over((first, last), (reads, writes))
        said.append(f"{where}{f' {name}' if name else ''}{f' ({rules})' if rules else ''}")
    more = len(misfit.left) - _LISTED
    if more > 0:
        said.append(f"and {more} more")
    return (
        f"the policy needs more than KVM's {MAX_RANGES} filter ranges of at most"
        f" {MAX_RANGE_MSRS:#x} MSRs each; these do not fit: {'; '.join(said)}"
    )


def _rules_over(span: tuple[int, int], tables: Sequence[Table]) -> str:
    found: dict[str, None] = {}
    for table in tables:
        for segment in table.segments:
            if segment.first <= span[1] and span[0] <= segment.last:
                found.update(dict.fromkeys(rule.where for rule in segment.rules))
    names = list(found)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
