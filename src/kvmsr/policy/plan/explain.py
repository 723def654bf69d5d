# SPDX-License-Identifier: Apache-2.0
"""
Explanations
------------

What becomes of an access under a plan, and why: which rule, which filter range and bit, what KVM
itself does, what the guest sees.

An access may come out in more than one way, for what KVM says of it is known when it is asked. So
an explanation has *cases*, one for each way in which KVM can give the access up.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.msr import X2APIC, catalog
from kvmsr.policy.access import Op, Reason
from kvmsr.policy.actions import Counter, Host, Model, Plain, Python, Value
from kvmsr.policy.plan.filter import Filter
from kvmsr.policy.plan.plan import Plan
from kvmsr.policy.plan.segments import Segment
from kvmsr.policy.rule import Place, Rule

__all__ = ("Case", "Effect", "Explanation", "FilterSays", "Step", "explain")


class Effect(enum.StrEnum):
    """
    What the guest sees.

    ``kernel`` is what KVM itself answers, ``code`` what a function, a model or the host's register
    makes of it.
    """

    VALUE = "value"
    DONE = "done"
    FAULT = "fault"
    STOP = "stop"
    KERNEL = "kernel"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class FilterSays:
    """
    What the filter decides.

    :ivar denied: whether the access is denied, and so comes to user space.
    :ivar range: the number of the range that decides, from 0; None where none holds the MSR.
    :ivar base: where that range begins.
    :ivar bit: the bit in it that decides.
    :ivar text: the same for people.
    """

    denied: bool
    range: int | None
    base: int | None
    bit: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """
    A rule that was tried.

    :ivar skipped: why it does not hold, or "" for the one that does.
    """

    where: str
    place: Place
    action: str
    skipped: str


@dataclass(frozen=True, slots=True)
class Case:
    """
    One way in which the access may come out.

    :ivar reason: for which reason KVM gives it up; None if KVM completes it.
    :ivar steps: the rules that are tried, in turn.
    :ivar rule: who decides: where the rule was written, ``defaults.unknown``, or ``kernel``.
    :ivar effect: what the guest sees.
    :ivar value: what a read gives, where that can be told.
    :ivar text: the same for people.
    """

    reason: Reason | None
    steps: tuple[Step, ...]
    rule: str
    effect: Effect
    value: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    What becomes of an access.

    :ivar kernel: what KVM itself would do, for people.
    :ivar cases: the ways in which it may come out; the first is the likely one.
    """

    op: Op
    index: int
    name: str
    filter: FilterSays
    kernel: str
    cases: tuple[Case, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON has it."""
        says = self.filter
        return {
            "schema": 1,
            "op": str(self.op),
            "index": f"{self.index:#x}",
            "name": self.name,
            "kernel": self.kernel,
            "filter": {
                "denied": says.denied,
                "range": says.range,
                "base": None if says.base is None else f"{says.base:#x}",
                "bit": says.bit,
                "text": says.text,
            },
            "cases": [
                {
                    "reason": case.reason and str(case.reason),
                    "rule": case.rule,
                    "effect": str(case.effect),
                    "value": None if case.value is None else f"{case.value:#x}",
                    "text": case.text,
                    "steps": [
                        {
                            "where": step.where,
                            **step.place.as_dict(),
                            "action": step.action,
                            "skipped": step.skipped,
                        }
                        for step in case.steps
                    ],
                }
                for case in self.cases
            ],
        }


@dataclass(frozen=True, slots=True)
class _Asked:
    plan: Plan
    op: Op
    index: int
    value: int
    vcpu: int
    cpl: int
    rip: int | None
    count: int


_BY_FILTER: Final = "x2APIC registers (0x800-0x8ff) are never filtered"


def explain(
    plan: Plan,
    op: Op,
    index: int,
    *,
    value: int = 0,
    vcpu: int = 0,
    cpl: int = 0,
    rip: int | None = None,
    count: int = 1,
) -> Explanation:
    """
    Return what becomes of the first access to an MSR under *plan*, and why.

    :param value: what is written.
    :param rip: where the guest is; None if that is not known: then rules that ask hold.
    :param count: which match it is, from 1, for rules that count.
    """
    asked = _Asked(plan, op, index, value, vcpu, cpl, rip, count)
    segment = plan.segment(op, index)
    says = filter_says(plan.filter, op, index)
    kernel = _kernel(asked, segment)
    if cpl != 0:
        text = f"#GP(0), by KVM itself: the CPL is {cpl}; nobody is asked"
        cases: tuple[Case, ...] = (Case(None, (), "kernel", Effect.FAULT, None, text),)
    else:
        cases = tuple(_cases(asked, segment, says))
    return Explanation(op, index, catalog().name(index), says, kernel, cases)


def filter_says(filter_: Filter, op: Op, index: int) -> FilterSays:
    """Return what KVM decides by *filter_*."""
    if X2APIC[0] <= index <= X2APIC[1]:
        return FilterSays(False, None, None, None, f"{_BY_FILTER}: allowed")
    for number, one in enumerate(filter_.ranges):
        direction = one.reads if op == Op.READ else one.writes
        if direction and one.base <= index < one.base + one.count:
            bit = index - one.base
            denied = not one.allows(index)
            last = one.base + one.count - 1
            text = (
                f"range {number} ({one.base:#x}-{last:#x}), bit {bit} is {int(not denied)}:"
                f" {'denied' if denied else 'allowed'}"
            )
            return FilterSays(denied, number, one.base, bit, text)
    denied = filter_.default_deny
    none = "there is no filter" if not filter_.ranges else "no range holds it"
    return FilterSays(
        denied, None, None, None, f"{none}: {'denied' if denied else 'allowed'} by default"
    )


def _kernel(asked: _Asked, segment: Segment) -> str:
    what = "reads" if asked.op == Op.READ else "writes"
    if segment.known:
        entry = catalog().get(asked.index)
        more = f". {entry.kvm.rstrip('.')}" if entry is not None and entry.kvm else ""
        return (
            f"some KVMs handle {what}; what they do not, they give up as unknown or invalid{more}"
        )
    if asked.plan.kernel.ignore_msrs:
        return f"no KVM handles {what}, and kvm.ignore_msrs=1 would swallow them"
    return f"no KVM handles {what}: they come to user space as unknown"


def _cases(asked: _Asked, segment: Segment, says: FilterSays) -> Iterator[Case]:
    swallowed = asked.plan.kernel.ignore_msrs and not segment.known
    if says.denied and swallowed:
        yield _decide(asked, segment, Reason.UNKNOWN)
    elif says.denied:
        first = _decide(asked, segment, Reason.FILTER)
        yield first
        if first.effect is Effect.KERNEL:  # KVM is asked, and may refuse
            for reason in (Reason.INVALID, Reason.UNKNOWN):
                yield _decide_refused(asked, segment, reason, first.rule)
    elif segment.known:
        yield Case(None, (), "kernel", Effect.KERNEL, None, "what KVM answers")
        for reason in (Reason.INVALID, Reason.UNKNOWN):
            yield _decide(asked, segment, reason)
    else:
        yield _decide(asked, segment, Reason.UNKNOWN)
        yield _decide(asked, segment, Reason.INVALID)  # a KVM newer than what is known of it


def _decide(asked: _Asked, segment: Segment, reason: Reason) -> Case:
    """Try the rules of *segment* in turn."""
    steps = []
    for rule in segment.rules:
        skipped = _why_not(asked, rule, reason)
        steps.append(Step(rule.where, rule.place, str(rule.action(asked.op)), skipped))
        if not skipped:
            return _act(asked, reason, rule, tuple(steps))
    return _unruled(asked, reason, "kernel", tuple(steps))


def _decide_refused(asked: _Asked, segment: Segment, reason: Reason, by: str) -> Case:
    """Try the rules that wait for KVM to refuse, in front of the one that passed it on."""
    steps = []
    for rule in segment.rules:
        if rule.when is None or rule.where == by:
            break
        if not rule.when.takes(Reason.FILTER):
            skipped = _why_not(asked, rule, reason)
            steps.append(Step(rule.where, rule.place, str(rule.action(asked.op)), skipped))
            if not skipped:
                return _act(asked, reason, rule, tuple(steps))
    return _unruled(asked, reason, "", tuple(steps))


def _why_not(asked: _Asked, rule: Rule, reason: Reason) -> str:
    when = rule.when
    if when is None:
        return ""
    why = when.why_not(asked.vcpu, asked.value, reason)
    if not why and when.rip and asked.rip is not None and not when.holds_at(asked.rip):
        why = f"RIP is {asked.rip:#x}"
    if not why and when.counts and not when.holds_for(asked.count):
        why = f"it is match number {asked.count}"
    return why and f"{why} (when {when})"


def _unruled(asked: _Asked, reason: Reason, rule: str, steps: tuple[Step, ...]) -> Case:
    if reason is Reason.FILTER:
        how = "KVM_GET_MSRS" if asked.op == Op.READ else "KVM_SET_MSRS"
        text = f"what KVM answers, by {how}"
        return Case(reason, steps, rule, Effect.KERNEL, None, text)
    name = "unknown" if reason is Reason.UNKNOWN else "invalid"
    action = getattr(asked.plan.policy.defaults, name)
    return _plain(asked, reason, action, f"defaults.{name}", steps, None)


def _act(asked: _Asked, reason: Reason, rule: Rule, steps: tuple[Step, ...]) -> Case:
    action = rule.action(asked.op)
    if isinstance(action, Value):
        text = f"the value {action.value:#x}"
        return Case(reason, steps, rule.where, Effect.VALUE, action.value, text)
    if isinstance(action, (Python, Model, Host)):
        does = "what it gives" if asked.op == Op.READ else "what it makes of the write"
        return Case(reason, steps, rule.where, Effect.CODE, None, f"{does}: {action}")
    if isinstance(action, Counter):
        if asked.op == Op.READ:
            text = f"what has been counted, {action.hz:,} a second, at first from {rule.reset:#x}"
            return Case(reason, steps, rule.where, Effect.CODE, None, text)
        text = f"nothing: it counts on from {asked.value:#x}"
        return Case(reason, steps, rule.where, Effect.DONE, None, text)
    if action is Plain.KERNEL:
        return _unruled(asked, reason, rule.where, steps)
    assert isinstance(action, Plain)
    return _plain(asked, reason, action, rule.where, steps, rule)


def _plain(
    asked: _Asked,
    reason: Reason,
    action: Plain,
    where: str,
    steps: tuple[Step, ...],
    rule: Rule | None,
) -> Case:
    is_read = asked.op == Op.READ
    if action is Plain.FAULT:
        return Case(reason, steps, where, Effect.FAULT, None, "#GP(0)")
    if action is Plain.STOP:
        return Case(reason, steps, where, Effect.STOP, None, "nothing more: the run stops")
    if action is Plain.IGNORE:
        if is_read:
            return Case(reason, steps, where, Effect.VALUE, 0, "the value 0")
        return Case(reason, steps, where, Effect.DONE, None, "nothing: the write is dropped")
    reset = rule.reset if rule else 0
    if is_read:
        text = f"the value last written, at first {reset:#x}"
        return Case(reason, steps, where, Effect.VALUE, reset, text)
    kept = asked.value
    if rule is not None and rule.bits is not None:
        new = rule.bits.write(reset, asked.value, first=True)
        if new is None:
            hit = (
                "a lock bit is set"
                if reset & rule.bits.lock
                else f"reserved bits {(reset ^ asked.value) & rule.bits.fault:#x} change"
            )
            return Case(reason, steps, where, Effect.FAULT, None, f"#GP(0): {hit}")
        kept = new
    return Case(reason, steps, where, Effect.DONE, None, f"nothing: {kept:#x} is kept")
