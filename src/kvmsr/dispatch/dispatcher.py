# SPDX-License-Identifier: Apache-2.0
"""
The dispatcher
--------------

Plan and register state at run time: an access goes in, an outcome comes out.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kvmsr.dispatch.conditions import Conditions, Test
from kvmsr.dispatch.handlers import HandlerFailure, Handlers, host_handler
from kvmsr.dispatch.host import HostMsrs
from kvmsr.dispatch.log import AccessLog, Sink
from kvmsr.dispatch.models import Instances
from kvmsr.dispatch.outcome import Outcome, Verdict, plain_outcome
from kvmsr.dispatch.state import Shadows
from kvmsr.errors import BrokenInvariantError
from kvmsr.policy import (
    Access,
    Bits,
    Counter,
    Host,
    Log,
    Model,
    Op,
    Plain,
    Python,
    Reason,
    Rule,
    Scope,
    Topology,
    Value,
)
from kvmsr.policy.plan import Plan

__all__ = ("Act", "Dispatcher", "Step")

_U64: Final = (1 << 64) - 1
_MAX_CACHED: Final = 4096

# On the way of every access; looking a member up in its enumeration costs more than using it.
_READ, _FILTER = Op.READ, Reason.FILTER
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT

# Half the price of the constructor that a NamedTuple gets.
_outcome: Callable[..., Outcome] = tuple.__new__

Act = Callable[[Access], Outcome]


class Step(NamedTuple):
    """
    A rule, prepared for one direction.

    :ivar fails: returns which key of the rule's condition fails for an access; "" if it holds.
    :ivar act: does the rule's action, and logs it.
    """

    rule: Rule
    fails: Test
    act: Act


class Dispatcher:
    """
    Answers accesses as a plan says; threads of several vCPUs may call it at once.

    :param vcpus: how many vCPUs there are, for the models that count them.
    :param clock: gives the guest's time in nanoseconds, never less than before.
    :param rip: gives a vCPU's RIP, called in its thread; for conditions that ask where the guest
        is.
    :param host: the host's registers, for ``host`` actions.
    :param memory: gives so many bytes of the guest's memory, for the models that look there; None
        where there is none.
    :param inert: leave functions, models and the host's registers alone: they are neither set up
        nor called, and an access that they are to answer must not come.
    :param log: takes accesses that policies want told: the access, its outcome, and a line.
    :ivar plan: the plan.
    :ivar conditions: the rules' conditions.
    :ivar models: the register models.
    :ivar shadows: what guests have written to shadowed MSRs.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        vcpus: int = 1,
        clock: Callable[[], int] = time.monotonic_ns,
        rip: Callable[[int], int] | None = None,
        host: HostMsrs | None = None,
        log: Sink | None = None,
        memory: Callable[[int, int], bytes | None] = lambda address, size: None,
        inert: bool = False,
    ) -> None:
        self.plan = plan
        self.conditions = Conditions(rip)
        self._host = host
        self._clock = clock
        self._begun = clock()
        self._inert = inert
        self._log = AccessLog(log)
        self.models = Instances(plan.policy.topology, vcpus, clock, memory)
        self.shadows = Shadows()
        self._handlers = Handlers(plan.policy.defaults.on_error)
        # What to do, by MSR: found once through the plan's table. Bounded: it is the guest that
        # chooses the MSRs.
        self._reads: dict[int, Act] = {}
        self._writes: dict[int, Act] = {}
        self._by_rule: dict[tuple[int, Op], Step] = {}
        for number, rule in enumerate(plan.policy.rules):
            for op in Op:
                if rule.action(op) is not None:
                    self._by_rule[id(rule), op] = self._prepare(rule, number, op)
        told = self._log.around
        self._defaults = {
            Reason.UNKNOWN: told(self._default("unknown"), Log.ONCE),
            Reason.INVALID: told(self._default("invalid"), Log.ONCE),
        }

    def handle(self, access: Access) -> Outcome:
        """Return what shall happen to *access*."""
        acts = self._reads if access.op == _READ else self._writes
        act = acts.get(access.index)
        if act is None:
            act = self._find(access.op, access.index)
            if len(acts) < _MAX_CACHED:
                acts[access.index] = act
        return act(access)

    def restated(self, access: Access) -> Access:
        """
        Return *access* with the reason that it has for handlers, log and rows.

        With ``ignore_msrs`` KVM would claim to know every MSR, so the filter denies those that it
        does not know; such an access is unknown all the same.
        """
        swallows = access.reason == _FILTER and self.plan.kernel.ignore_msrs
        if swallows and not self.plan.segment(access.op, access.index).known:
            return access._replace(reason=Reason.UNKNOWN)
        return access

    def refused(self, access: Access, passed: Outcome) -> Outcome:
        """
        Return what shall happen to an access that was passed on to KVM, and KVM refused.

        :param access: the access, with the reason for which KVM refused it.
        :param passed: the outcome that passed it on.
        """
        for step in self.steps_refused(access.op, access.index, passed):
            if not step.fails(access):
                return step.act(access)
        return self._defaults[access.reason](access)

    def steps(self, op: Op, index: int) -> tuple[Step, ...]:
        """Return the rules that an access is tried against, in turn."""
        return tuple(self._by_rule[id(rule), op] for rule in self.plan.segment(op, index).rules)

    def steps_refused(self, op: Op, index: int, passed: Outcome) -> Iterator[Step]:
        """
        Yield the rules to try when KVM has refused an access that was passed on to it.

        Those are the rules that wait for just that, in front of the one that passed it on. The
        others have been tried already, and would count the access twice.
        """
        for step in self.steps(op, index):
            when = step.rule.when
            passes = step.rule.action(op) is Plain.KERNEL and step.rule.where == passed.rule
            if when is None or passes:
                return
            if not when.takes(Reason.FILTER):
                yield step

    def unruled(self, access: Access, rule: str = "kernel") -> Outcome:
        """Return what happens where no rule holds, or where the one that holds says ``kernel``."""
        if access.reason == _FILTER:  # for another rule's sake, or by a default-deny filter
            return Outcome(Verdict.KERNEL, rule)
        return self._defaults[access.reason](access)

    def act(self, rule: Rule, op: Op) -> Act:
        """Return what does *rule*'s action, whether its condition holds or not."""
        return self._by_rule[id(rule), op].act

    @property
    def failures(self) -> list[HandlerFailure]:
        """Return the first handler failures, 32 at most."""
        return self._handlers.failures

    @property
    def failure_count(self) -> int:
        """Return how many handler failures there were."""
        return self._handlers.failure_count

    @property
    def logs(self) -> bool:
        """Whether anybody takes log lines."""
        return self._log.listens

    def log(self, rule: Rule | None, access: Access, outcome: Outcome) -> None:
        """Log an access that was answered elsewhere as *rule* wants; None is a default."""
        self._log.see(access, outcome, Log.ONCE if rule is None else rule.log)

    def elapsed(self) -> int:
        """Return the guest's time, in nanoseconds, since its beginning."""
        return max(self._clock() - self._begun, 0)

    def state(self) -> dict[str, Any]:
        """Return what must survive a snapshot, as JSON knows it; no vCPU may run meanwhile."""
        return {
            "shadows": self.shadows.state(),
            "models": self.models.state(),
            "conditions": self.conditions.state(),
            "elapsed": self.elapsed(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Restore a saved state; no vCPU may run meanwhile.

        :raises PolicyError: if it was saved under another policy.
        """
        self.conditions.restore(state["conditions"])
        self.models.restore(state["models"])
        self.shadows.restore(state["shadows"])
        self._begun = self._clock() - state["elapsed"]

    # Finding what to do

    def _find(self, op: Op, index: int) -> Act:
        steps = [(step.fails, step.act) for step in self.steps(op, index)]
        segment = self.plan.segment(op, index)
        # Of an MSR that KVM does not know it says so; but with ignore_msrs it would claim that it
        # does, so the filter denies it.
        swallowed = self.plan.swallowed(segment)
        last: Act = self.unruled
        if segment.rules and segment.rules[-1].when is None:
            last = steps.pop()[1]
        if not steps and not swallowed:
            return last

        def act(access: Access) -> Outcome:
            if swallowed and access.reason == _FILTER:
                access = access._replace(reason=Reason.UNKNOWN)
            for fails, step in steps:
                if not fails(access):
                    return step(access)
            return last(access)

        return act

    def _prepare(self, rule: Rule, number: int, op: Op) -> Step:
        log = rule.log
        action = rule.action(op)
        if log is None and (isinstance(action, Value) or action is Plain.IGNORE):
            log = Log.NEVER  # they do not fault
        if action is Plain.KERNEL:
            log = Log.NEVER  # what comes of it is KVM's, or a default's, which tells it
        test = self.conditions.test(rule, number, op)
        return Step(rule, test, self._log.around(self._act(rule, op), log))

    def _act(self, rule: Rule, op: Op) -> Act:
        action = rule.action(op)
        if isinstance(action, Value):
            return _always(Outcome(Verdict.VALUE, rule.where, action.value))
        if isinstance(action, (Python, Model, Host)):
            return _never if self._inert else self._code(action, rule)
        if isinstance(action, Counter):
            return self._counter(rule, action)
        if action is Plain.KERNEL:
            return lambda access: self.unruled(access, rule.where)
        if action is Plain.SHADOW:
            return self._shadow(rule.where, rule.reset, rule.scope, rule.bits)
        if isinstance(action, Plain):
            return _always(plain_outcome(action, rule.where, op))
        raise BrokenInvariantError(f"{rule.where}: no way to do {action!r}")

    def _code(self, action: Python | Model | Host, rule: Rule) -> Act:
        if isinstance(action, Python):
            return self._handlers.act(action.function, action.name, rule.where)
        if isinstance(action, Model):
            self.models.prepare(action, rule.where)
            return self._handlers.act(self.models.handler(action), action.name, rule.where)
        function = host_handler(self._host, action, rule.where)
        return self._handlers.act(function, str(action), rule.where)

    # Doing it

    def _default(self, name: str) -> Act:
        action, rule = getattr(self.plan.policy.defaults, name), f"defaults.{name}"
        if action is Plain.SHADOW:
            return self._shadow(rule, 0)
        outcomes = {op: plain_outcome(action, rule, op) for op in Op}
        return lambda access: outcomes[access.op]

    def _shadow(
        self, rule: str, reset: int, scope: Scope = Scope.THREAD, bits: Bits | None = None
    ) -> Act:
        shadows = self.shadows
        holder = _holder(self.plan.policy.topology, scope)

        def act(access: Access) -> Outcome:
            if access.op == _READ:
                value = shadows.read(holder(access.vcpu), access.index, reset)
                return _outcome(Outcome, (_VALUE, rule, value))
            kept = shadows.write(holder(access.vcpu), access.index, access.value)
            return _outcome(Outcome, (_DONE if kept else _FAULT, rule, 0))

        def act_by_bits(access: Access) -> Outcome:
            assert bits is not None
            who, index = holder(access.vcpu), access.index
            if access.op == _READ:
                value = shadows.read_bits(who, index, reset, bits)
                if value is not None:
                    return Outcome(_VALUE, rule, value)
                return Outcome(_FAULT, rule)
            done = shadows.write_bits(who, index, access.value, reset, bits)
            return Outcome(_DONE if done else _FAULT, rule)

        return act if bits is None else act_by_bits

    def _counter(self, rule: Rule, counter: Counter) -> Act:
        """A counter is kept as what it would be at the beginning of time."""
        shadows, where, reset = self.shadows, rule.where, rule.reset
        holder = _holder(self.plan.policy.topology, rule.scope)

        def act(access: Access) -> Outcome:
            who, ticks = holder(access.vcpu), counter.ticks(self.elapsed())
            if access.op == _READ:
                value = shadows.read(who, access.index, reset) + ticks & _U64
                return Outcome(_VALUE, where, value)
            kept = shadows.write(who, access.index, access.value - ticks & _U64)
            return Outcome(_DONE if kept else _FAULT, where)

        return act


def _holder(topology: Topology, scope: Scope) -> Callable[[int], int]:
    """Return what numbers the holders of a shadow by vCPU; no two scopes share a number."""
    if scope is Scope.THREAD:
        return lambda vcpu: vcpu
    unit, place = topology.unit, list(Scope).index(scope)
    return lambda vcpu: -len(Scope) * unit(scope, vcpu) - place


def _never(access: Access) -> Outcome:
    raise BrokenInvariantError(f"an inert dispatcher was asked for a {access}")


def _always(outcome: Outcome) -> Act:
    return lambda access: outcome
