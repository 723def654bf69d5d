# SPDX-License-Identifier: Apache-2.0
"""
The dispatcher
--------------

Plan and register state at run time: an access goes in, an outcome comes out.
"""

import operator
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvmsr.dispatch.models import Instances
from kvmsr.dispatch.outcome import Outcome, Verdict
from kvmsr.dispatch.state import Shadows
from kvmsr.errors import BrokenInvariantError
from kvmsr.policy import (
    Access,
    Fault,
    Handler,
    Model,
    Op,
    Plain,
    Plan,
    Python,
    Reason,
    Rule,
    Scope,
    Topology,
    Value,
)
from kvmsr.policy.selector import shown, told

__all__ = ("Dispatcher", "HandlerFailure")

_U64: Final = (1 << 64) - 1
_MAX_FAILURES: Final = 32
_MAX_CACHED: Final = 4096
_MAX_TRACEBACK: Final = 16_000

# On the way of every access; looking a member up in its enumeration costs more than using it.
_READ, _WRITE = Op.READ, Op.WRITE
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT

# Half the price of the constructor that a NamedTuple gets.
_outcome: Callable[..., Outcome] = tuple.__new__

_Act = Callable[[Access], Outcome]


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """
    A handler that raised, or gave back what is no answer.

    :ivar handler: its name.
    :ivar rule: where the rule that names it was written.
    :ivar access: what it was asked.
    :ivar message: what went wrong, in one line.
    :ivar traceback: where in the handler, as Python prints it, its last 16,000 characters; "" if it
        did not raise.
    """

    handler: str
    rule: str
    access: Access
    message: str
    traceback: str


class Dispatcher:
    """
    Answers accesses as a plan says; threads of several vCPUs may call it at once.

    :param vcpus: how many vCPUs there are, for the models that count them.
    :param clock: gives the guest's time in nanoseconds, never less than before.
    :ivar plan: the plan.
    :ivar models: the register models.
    :ivar shadows: what guests have written to shadowed MSRs.
    :ivar failures: the first handler failures, 32 at most.
    :ivar failure_count: how many there were.
    """

    def __init__(
        self, plan: Plan, *, vcpus: int = 1, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.plan = plan
        self.models = Instances(plan.policy.topology, vcpus, clock)
        for rule in plan.policy.rules:
            for action in (rule.read, rule.write):
                if isinstance(action, Model):
                    self.models.prepare(action, rule.where)
        self.shadows = Shadows()
        self.failures: list[HandlerFailure] = []
        self.failure_count = 0
        self._failing = threading.Lock()
        # What to do, by MSR: found once through the plan's table. Bounded: it is the guest that
        # chooses the MSRs.
        self._reads: dict[int, _Act] = {}
        self._writes: dict[int, _Act] = {}
        self._default: _Act = self._by_reason
        self._by_rule: dict[tuple[int, Op], _Act] = {}

    def handle(self, access: Access) -> Outcome:
        """Return what shall happen to *access*."""
        acts = self._reads if access.op == _READ else self._writes
        act = acts.get(access.index)
        if act is None:
            act = self._find(access.op, access.index)
            if len(acts) < _MAX_CACHED:
                acts[access.index] = act
        return act(access)

    def refused(self, access: Access) -> Outcome:
        """Return what shall happen to an access that was passed on to KVM, and KVM refused."""
        return self._plain(self.plan.policy.defaults.unknown, "defaults.unknown", access)

    # Finding what to do

    def _find(self, op: Op, index: int) -> _Act:
        rule = self.plan.rule(op, index)
        if rule is None:
            return self._default
        key = (id(rule), op)  # the plan keeps the rule, so its id stays its own
        act = self._by_rule.get(key)
        if act is None:
            act = self._by_rule[key] = self._act(rule, op)
        return act

    def _act(self, rule: Rule, op: Op) -> _Act:
        action = rule.action(op)
        if isinstance(action, Value):
            return _always(Outcome(Verdict.VALUE, rule.where, action.value))
        if isinstance(action, Python):
            return self._handler(action.function, action.name, rule.where)
        if isinstance(action, Model):
            return self._handler(self.models.handler(action), action.name, rule.where)
        if action is Plain.KERNEL:
            return self._default
        if action is Plain.SHADOW:
            return self._shadow(rule.where, rule.reset, rule.scope)
        if action is Plain.FAULT:
            return _always(Outcome(Verdict.FAULT, rule.where))
        if action is Plain.STOP:
            return _always(Outcome(Verdict.STOP, rule.where))
        if action is Plain.IGNORE:
            return _always(_ignored(op, rule.where))
        raise BrokenInvariantError(f"{rule.where}: no way to do {action!r}")

    def _by_reason(self, access: Access) -> Outcome:
        """Do what holds where no rule does, or where the rule says ``kernel``."""
        defaults = self.plan.policy.defaults
        if access.reason == Reason.UNKNOWN:
            return self._plain(defaults.unknown, "defaults.unknown", access)
        if access.reason == Reason.INVALID:
            return self._plain(defaults.invalid, "defaults.invalid", access)
        # The filter denied it although nobody has a rule for it: it lies in a default-deny filter,
        # and KVM is believed not to know it. With ignore_msrs KVM would claim that it does.
        if self.plan.kernel.ignore_msrs:
            return self._plain(defaults.unknown, "defaults.unknown", access)
        return Outcome(Verdict.KERNEL, "kernel")

    # Doing it

    def _plain(self, action: Plain, rule: str, access: Access) -> Outcome:
        if action is Plain.FAULT:
            return Outcome(Verdict.FAULT, rule)
        if action is Plain.IGNORE:
            return _ignored(access.op, rule)
        if action is Plain.SHADOW:
            return self._shadow(rule, 0, Scope.THREAD)(access)
        return Outcome(Verdict.STOP, rule)

    def _shadow(self, rule: str, reset: int, scope: Scope) -> _Act:
        shadows = self.shadows
        holder = _holder(self.plan.policy.topology, scope)

        def act(access: Access) -> Outcome:
            if access.op == _READ:
                value = shadows.read(holder(access.vcpu), access.index, reset)
                return _outcome(Outcome, (_VALUE, rule, value))
            kept = shadows.write(holder(access.vcpu), access.index, access.value)
            return _outcome(Outcome, (_DONE if kept else _FAULT, rule, 0))

        return act

    def _handler(self, function: Handler, name: str, rule: str) -> _Act:
        done, fault = Outcome(_DONE, rule), Outcome(_FAULT, rule)

        def act(access: Access) -> Outcome:
            try:
                answer = function(access)
            except Fault:
                return fault
            except KeyboardInterrupt:
                raise  # it is not the handler's
            except BaseException as error:  # also SystemExit: it would end the vCPU's thread
                return self._failed(name, rule, access, f"raised {told(error)}", _trace(error))
            if access.op == _WRITE:
                if answer is None:
                    return done
                message = f"returned {shown(answer)}; a handler of writes returns nothing"
                return self._failed(name, rule, access, message)
            try:
                value = operator.index(answer)  # type: ignore[arg-type]
            except KeyboardInterrupt:
                raise
            except BaseException:  # whatever somebody's __index__ does
                message = f"returned {shown(answer)}; a handler of reads returns an integer"
                return self._failed(name, rule, access, message)
            if not 0 <= value <= _U64:
                message = f"returned {shown(value)}, which does not fit an MSR's 64 bits"
                return self._failed(name, rule, access, message)
            return _outcome(Outcome, (_VALUE, rule, value))

        return act

    def _failed(
        self, name: str, rule: str, access: Access, message: str, text: str = ""
    ) -> Outcome:
        with self._failing:
            self.failure_count += 1
            if len(self.failures) < _MAX_FAILURES:
                self.failures.append(HandlerFailure(name, rule, access, message, text))
        return self._plain(self.plan.policy.defaults.on_error, "defaults.on_error", access)


def _holder(topology: Topology, scope: Scope) -> Callable[[int], int]:
    """Return what numbers the holders of a shadow by vCPU; no two scopes share a number."""
    if scope is Scope.THREAD:
        return lambda vcpu: vcpu
    unit, place = topology.unit, list(Scope).index(scope)
    return lambda vcpu: -len(Scope) * unit(scope, vcpu) - place


def _trace(error: BaseException) -> str:
    """Return the traceback; of a long one the end."""
    return "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]


def _always(outcome: Outcome) -> _Act:
    return lambda access: outcome


def _ignored(op: Op, rule: str) -> Outcome:
    return Outcome(Verdict.VALUE if op == Op.READ else Verdict.DONE, rule)
