# SPDX-License-Identifier: Apache-2.0
"""
Explanations
------------

Explain what happens to an access under a plan, and why: which rule applies, which filter range and
bit, what KVM itself does, and what the guest sees.

An access may end in more than one way, because what KVM does with it is only known when KVM is
asked. So an explanation has *cases*, one for each way in which KVM can give the access up.

This module decides nothing. It asks a dispatcher, the code that answers guests, rule by rule, and
puts the result into words. The dispatcher is inert: no function, model or host register is called.
"""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.dispatch.dispatcher import Dispatcher, Step
from kvmsr.dispatch.outcome import Outcome, Verdict
from kvmsr.msr import X2APIC, catalog
from kvmsr.policy import (
    Access,
    Action,
    Counter,
    Host,
    Model,
    Op,
    Place,
    Plain,
    Python,
    Reason,
    Rule,
    Where,
)
from kvmsr.policy.plan import Filter, Plan

__all__ = ("Case", "Effect", "Explanation", "FilterSays", "Tried", "explain")


class Effect(enum.StrEnum):
    """
    What the guest sees.

    ``kernel`` is KVM's own answer; ``code`` is the answer of a function, a model or a register of
    the host.
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
    :ivar range: number of the range that decides, from 0; None if no range holds the MSR.
    :ivar base: first MSR of that range.
    :ivar bit: number of the bit that decides, in that range's bitmap.
    :ivar text: the same in words.
    """

    denied: bool
    range: int | None
    base: int | None
    bit: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Tried:
    """
    A rule that was tried.

    :ivar where: where the rule was written, for messages.
    :ivar place: the same, as values.
    :ivar action: what the rule does in this direction.
    :ivar skipped: why the rule does not hold; "" for the one that does.
    """

    where: str
    place: Place
    action: str
    skipped: str


@dataclass(frozen=True, slots=True)
class Case:
    """
    One way in which the access may end.

    :ivar reason: the reason for which KVM gives it up; None if KVM completes it.
    :ivar steps: the rules that are tried, in order.
    :ivar rule: what decides: where the rule was written, ``defaults.unknown``, or ``kernel``.
    :ivar effect: what the guest sees.
    :ivar value: the value that a read returns; None if it is not known in advance.
    :ivar text: the same in words.
    """

    reason: Reason | None
    steps: tuple[Tried, ...]
    rule: str
    effect: Effect
    value: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    What happens to an access.

    :ivar op: read or write.
    :ivar index: the MSR.
    :ivar name: the MSR's name; "" if the catalog does not have it.
    :ivar filter: what the filter decides.
    :ivar kernel: what KVM itself would do, in words.
    :ivar cases: the ways in which the access may end, the likely one first.
    """

    op: Op
    index: int
    name: str
    filter: FilterSays
    kernel: str
    cases: tuple[Case, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON types."""
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


_EFFECTS: Final = {
    Verdict.VALUE: Effect.VALUE,
    Verdict.DONE: Effect.DONE,
    Verdict.FAULT: Effect.FAULT,
    Verdict.STOP: Effect.STOP,
    Verdict.KERNEL: Effect.KERNEL,
}


def explain(
    plan: Plan,
    op: Op,
    index: int,
    *,
    value: int = 0,
    vcpu: int = 0,
    cpl: int = 0,
    rip: int | None = None,
    caller: int | None = None,
    count: int = 1,
    handled: bool | None = None,
) -> Explanation:
    """
    Return what happens to the first access to an MSR under *plan*, and why.

    :param value: the value written, 0 to 2**64 - 1.
    :param vcpu: the vCPU's number, from 0.
    :param cpl: the guest's privilege level, 0 to 3.
    :param rip: the guest's RIP; None if it is not known, in which case conditions on RIP hold.
    :param caller: an address in a function that called the guest's; None if the callers are not
        known, in which case conditions on them hold.
    :param count: number of this match, from 1, for rules that count.
    :param handled: whether the KVM in question handles *op* on the MSR; None if it is not known,
        and then the plan's facts about any KVM apply.
    """
    kernel = _kernel(plan, op, index, handled)
    left = plan.why_not_observed(op, index)
    kernel += f". Not observed: if KVM is asked as the host, {left}" if left else ""
    says = filter_says(plan.filter, op, index)
    if cpl != 0:
        text = f"#GP(0), from KVM itself, as the CPL is {cpl}"
        cases: tuple[Case, ...] = (Case(None, (), "kernel", Effect.FAULT, None, text),)
    else:
        access = Access(vcpu, op, index, value if op == Op.WRITE else 0, Reason.FILTER)
        cases = tuple(_Asker(plan, access, rip, caller, count).cases(says.denied, handled))
    rules = plan.segment(op, index).rules
    name = rules[0].name_of(index) if rules else catalog().name(index)
    return Explanation(op, index, name, says, kernel, cases)


def filter_says(filter_: Filter, op: Op, index: int) -> FilterSays:
    """Return what KVM decides under *filter_*."""
    denied, number = filter_.decide(op, index)
    word = "denied" if denied else "allowed"
    if X2APIC[0] <= index <= X2APIC[1]:
        text = f"x2APIC registers (0x800-0x8ff) are never filtered: {word}"
        return FilterSays(denied, None, None, None, text)
    if number is None:
        none = "there is no filter" if not filter_.ranges else "no range covers it"
        return FilterSays(denied, None, None, None, f"{none}: {word} by default")
    one = filter_.ranges[number]
    bit = index - one.base
    span = f"{one.base:#x}-{one.base + one.count - 1:#x}"
    text = f"range {number} ({span}), bit {bit} is {int(not denied)}: {word}"
    return FilterSays(denied, number, one.base, bit, text)


def _kernel(plan: Plan, op: Op, index: int, handled: bool | None) -> str:
    what = "reads" if op == Op.READ else "writes"
    if handled is not None:
        if handled:
            return f"handles {what}; hands those that it rejects over as invalid"
        if plan.kernel.ignore_msrs:
            return f"does not handle {what}, and kvm.ignore_msrs=1 would swallow them"
        return f"does not handle {what}: they come to user space as unknown"
    if plan.segment(op, index).known:
        entry = catalog().get(index)
        more = f". {entry.kvm.rstrip('.')}" if entry is not None and entry.kvm else ""
        return f"some KVMs handle {what}; others hand them over as unknown or invalid{more}"
    if plan.kernel.ignore_msrs:
        return f"no KVM handles {what}, and kvm.ignore_msrs=1 would swallow them"
    return f"no KVM handles {what}: they come to user space as unknown"


class _Asker:
    """Asks a dispatcher about one access. Every case starts from a guest that has done nothing."""

    def __init__(
        self, plan: Plan, access: Access, rip: int | None, caller: int | None, count: int
    ) -> None:
        self._plan = plan
        self._access = access
        self._rip = rip
        self._caller = caller
        self._count = count
        self._rule: Rule | None = None  # the one being tried
        self._dispatcher = Dispatcher(
            plan, clock=lambda: 0, rip=self._at, where=self._where, inert=True
        )
        self._fresh = self._dispatcher.state()
        self._fresh["conditions"] = dict.fromkeys(self._fresh["conditions"], count - 1)

    def cases(self, denied: bool, handled: bool | None) -> Iterator[Case]:
        """Yield the ways in which the access may end, the likely one first."""
        segment = self._plan.segment(self._access.op, self._access.index)
        reasons = (Reason.UNKNOWN,) if handled is False else (Reason.INVALID, Reason.UNKNOWN)
        if denied:
            first = self._case(self._dispatcher.restated(self._access).reason)
            yield first
            if first.effect is Effect.KERNEL:  # KVM is asked, and may refuse
                for reason in reasons:
                    yield self._case(reason, Outcome(Verdict.KERNEL, first.rule))
        elif segment.known and (handled is not False or self._plan.kernel.ignore_msrs):
            yield Case(None, (), "kernel", Effect.KERNEL, None, "KVM's answer")
            for reason in reasons:
                yield self._case(reason)
        else:
            for reason in reversed(reasons):  # invalid: from a KVM newer than the catalog
                yield self._case(reason)

    def _case(self, reason: Reason, passed: Outcome | None = None) -> Case:
        """
        Return how the access ends if KVM gives it up for *reason*.

        :param passed: the outcome that passed the access on to KVM, if KVM refused it then.
        """
        dispatcher, access = self._dispatcher, self._access._replace(reason=reason)
        dispatcher.restore(self._fresh)
        steps: Iterable[Step] = dispatcher.steps(access.op, access.index)
        if passed is not None:
            steps = dispatcher.steps_refused(access.op, access.index, passed)
        tried = []
        for step in steps:
            self._rule, action = step.rule, step.rule.action(access.op)
            skipped = self._skipped(step.fails(access), access)
            tried.append(Tried(step.rule.where, step.rule.place, str(action), skipped))
            if skipped:
                continue
            if isinstance(action, (Python, Model, Host)):
                what = "the answer of" if access.op == Op.READ else "the write handled by"
                text, where = f"{what} {action}", step.rule.where
                return Case(reason, tuple(tried), where, Effect.CODE, None, text)
            return self._ended(access, step.act(access), step.rule, tuple(tried))
        return self._ended(access, dispatcher.unruled(access), None, tuple(tried))

    def _ended(
        self, access: Access, outcome: Outcome, rule: Rule | None, tried: tuple[Tried, ...]
    ) -> Case:
        verdict, where, _ = outcome
        if rule is not None and rule.where != where:
            rule = None  # the rule says kernel, and a default decided
        effect, value = _EFFECTS[verdict], None
        if verdict is Verdict.VALUE:
            value = outcome.value
            if rule is not None and isinstance(rule.read, Counter):
                effect, value = Effect.CODE, None  # it depends on the time
        text = self._text(access, outcome, rule)
        return Case(access.reason, tried, where, effect, value, text)

    # Words

    def _where(self, vcpu: int) -> Where:
        """Return where the guest is; if that is not known, where the rule being tried holds."""
        if self._caller is not None:
            return Where(self._caller)
        when = self._rule and self._rule.when
        return Where(when.caller[0] if when and when.caller else 0)

    def _at(self, vcpu: int) -> int:
        """Return RIP; if it is not known, one for which the rule being tried holds."""
        if self._rip is not None:
            return self._rip
        when = self._rule and self._rule.when
        return when.rip[0] if when and when.rip else 0

    def _skipped(self, key: str, access: Access) -> str:
        if not key or self._rule is None:
            return ""
        why = {
            "vcpu": f"the vCPU is {access.vcpu}",
            "reason": f"the reason is {access.reason}",
            "value": f"the value is {access.value:#x}",
            "cpl": self._rule.never,
            "rip": f"RIP is {self._rip or 0:#x}",
            "caller": f"the caller is at {self._caller or 0:#x}",
            "count": f"it is match number {self._count}",
        }[key]
        return f"{why} (when {self._rule.when})"

    def _text(self, access: Access, outcome: Outcome, rule: Rule | None) -> str:
        """Return what the guest sees."""
        verdict = outcome.verdict
        if verdict is Verdict.KERNEL:
            return f"KVM's answer, by KVM_{'GET' if access.op == Op.READ else 'SET'}_MSRS"
        if verdict is Verdict.STOP:
            return "nothing more: the run stops"
        default = outcome.rule.removeprefix("defaults.")
        action = rule.action(access.op) if rule else getattr(self._plan.policy.defaults, default)
        if verdict is Verdict.FAULT:
            return f"#GP(0){_hit(rule, access.value) if rule and action is Plain.SHADOW else ''}"
        if verdict is Verdict.VALUE:
            return _value_text(action, outcome.value)
        if action is Plain.IGNORE:
            return "nothing: the write is dropped"
        if isinstance(action, Counter):
            return f"nothing: it counts on from {access.value:#x}"
        ((_, _, kept),) = self._dispatcher.shadows.state()["values"]
        return f"nothing: {kept:#x} is kept"


def _value_text(action: Action | None, value: int) -> str:
    if isinstance(action, Counter):
        return f"a counter that starts at {value:#x} and counts {action.hz:,} times a second"
    if action is Plain.SHADOW:
        return f"the value last written, initially {value:#x}"
    return f"the value {value:#x}"


def _hit(rule: Rule, value: int) -> str:
    """Return why writing *value* to a shadow that holds its reset value faults."""
    if rule.bits is None:
        return ""
    if rule.reset & rule.bits.lock:
        return ": a lock bit is set"
    return f": reserved bits {(rule.reset ^ value) & rule.bits.fault:#x} would change"
