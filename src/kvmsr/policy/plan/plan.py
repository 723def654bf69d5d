# SPDX-License-Identifier: Apache-2.0
"""
Plans
-----

A policy compiled for a KVM: the reasons for which accesses come to user space, the filter, and the
tables by which an access finds its rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvmsr.errors import FilterCapacityError
from kvmsr.msr import X2APIC, catalog
from kvmsr.policy.access import Op, Reason
from kvmsr.policy.plan.facts import MAX_RANGE_MSRS, MAX_RANGES, KernelFacts
from kvmsr.policy.plan.filter import Filter, Misfit, Run, Want, compile_filter
from kvmsr.policy.plan.lint import Lint, lint_policy, x2apic_errors
from kvmsr.policy.plan.segments import Segment, Table, cut
from kvmsr.policy.policy import Policy
from kvmsr.policy.selector import MAX_INDEX, Ranges

__all__ = ("Plan", "compile_policy")

_LISTED = 12


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
    """

    policy: Policy
    kernel: KernelFacts
    reasons: frozenset[Reason]
    filter: Filter
    reads: Table
    writes: Table
    lints: tuple[Lint, ...]

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
    reads, writes = cut(policy, Op.READ, kernel), cut(policy, Op.WRITE, kernel)
    runs = _runs(reads, writes, kernel)
    compiled = compile_filter(runs)
    if isinstance(compiled, Misfit):
        raise FilterCapacityError(_say_misfit(compiled, reads, writes), file=policy.source)
    denies = compiled.default_deny or bool(compiled.ranges)
    reasons = {Reason.UNKNOWN, Reason.INVALID} | ({Reason.FILTER} if denies else set())
    lints = tuple(lint_policy(policy, kernel, reads, writes))
    return Plan(policy, kernel, frozenset(reasons), compiled, reads, writes, lints)


def _is_ours(segment: Segment, op: Op) -> bool:
    """Return whether a rule takes accesses to *segment* from KVM."""
    return any(rule.asks_for(op) for rule in segment.rules)


_Wanted = tuple[Want, bool]


def _wants(table: Table, op: Op, kernel: KernelFacts) -> list[_Wanted]:
    """Return the want of each segment of *table*, and the preferred bit where it is ANY."""
    found: list[_Wanted] = []
    # Most segments have no rule, or one without a condition, and few different wants.
    by_kind: dict[tuple[bool, bool], _Wanted] = {}
    for segment in table.segments:
        first, _, rules, known = segment
        if len(rules) > 1 or X2APIC[0] <= first <= X2APIC[1] or (rules and rules[0].when):
            found.append(_want(segment, op, kernel))
            continue
        kind = (known, bool(rules) and rules[0].asks_for(op))
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
