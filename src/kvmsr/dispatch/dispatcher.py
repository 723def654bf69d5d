# SPDX-License-Identifier: Apache-2.0
"""
The dispatcher
--------------

Plan and register state at run time: an access goes in, an outcome comes out.
"""

import errno
import operator
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.dispatch.conditions import Conditions, Test
from kvmsr.dispatch.host import HostMsrs
from kvmsr.dispatch.log import AccessLog, Sink
from kvmsr.dispatch.models import Instances
from kvmsr.dispatch.outcome import Outcome, Verdict
from kvmsr.dispatch.state import Shadows
from kvmsr.errors import BrokenInvariantError, UsageError
from kvmsr.policy import (
    Access,
    Bits,
    Counter,
    Fault,
    Handler,
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
from kvmsr.policy.selector import shown, told

__all__ = ("Dispatcher", "HandlerFailure")

_U64: Final = (1 << 64) - 1
_MAX_FAILURES: Final = 32
_MAX_CACHED: Final = 4096
_MAX_TRACEBACK: Final = 16_000

# On the way of every access; looking a member up in its enumeration costs more than using it.
_READ, _WRITE, _FILTER = Op.READ, Op.WRITE, Reason.FILTER
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
    :param rip: gives a vCPU's RIP, called in its thread; for conditions that ask where the guest
        is.
    :param host: the host's registers, for ``host`` actions.
    :param memory: gives so many bytes of the guest's memory, for the models that look there; None
        where there is none.
    :param log: takes accesses that policies want told: the access, its outcome, and a line.
    :ivar plan: the plan.
    :ivar conditions: the rules' conditions.
    :ivar models: the register models.
    :ivar shadows: what guests have written to shadowed MSRs.
    :ivar failures: the first handler failures, 32 at most.
    :ivar failure_count: how many there were.
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
    ) -> None:
        self.plan = plan
        self.conditions = Conditions(rip)
        self._host = host
        self._clock = clock
        self._begun = clock()
        self._log = AccessLog(log)
        self.models = Instances(plan.policy.topology, vcpus, clock, memory)
        self.shadows = Shadows()
        self.failures: list[HandlerFailure] = []
        self.failure_count = 0
        self._failing = threading.Lock()
        # What to do, by MSR: found once through the plan's table. Bounded: it is the guest that
        # chooses the MSRs.
        self._reads: dict[int, _Act] = {}
        self._writes: dict[int, _Act] = {}
        self._by_rule: dict[tuple[int, Op], tuple[Test, _Act]] = {}
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
        for rule in self.plan.segment(access.op, access.index).rules:
            passes = rule.action(access.op) is Plain.KERNEL and rule.where == passed.rule
            if rule.when is None or passes:
                break
            # The others have been asked already, and would count the access twice.
            if not rule.when.takes(Reason.FILTER):
                holds, act = self._by_rule[id(rule), access.op]
                if holds(access):
                    return act(access)
        return self._defaults[access.reason](access)

    def act(self, rule: Rule, op: Op) -> _Act:
        """Return what does *rule*'s action, whether its condition holds or not."""
        return self._by_rule[id(rule), op][1]

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

    def _find(self, op: Op, index: int) -> _Act:
        segment = self.plan.segment(op, index)
        steps = [self._by_rule[id(rule), op] for rule in segment.rules]
        # Of an MSR that KVM does not know it says so; but with ignore_msrs it would claim that it
        # does, so the filter denies it.
        swallowed = self.plan.kernel.ignore_msrs and not segment.known
        last: _Act = self._unruled
        if segment.rules and segment.rules[-1].when is None:
            last = steps.pop()[1]
        if not steps and not swallowed:
            return last

        def act(access: Access) -> Outcome:
            if swallowed and access.reason == _FILTER:
                access = access._replace(reason=Reason.UNKNOWN)
            for holds, step in steps:
                if holds(access):
                    return step(access)
            return last(access)

        return act

    def _prepare(self, rule: Rule, number: int, op: Op) -> tuple[Test, _Act]:
        """Return what tells whether *rule* holds for an access, and what it then does."""
        log = rule.log
        action = rule.action(op)
        if log is None and (isinstance(action, Value) or action is Plain.IGNORE):
            log = Log.NEVER  # they do not fault
        if action is Plain.KERNEL:
            log = Log.NEVER  # what comes of it is KVM's, or a default's, which tells it
        test = self.conditions.test(rule, number, op)
        return test, self._log.around(self._act(rule, op), log)

    def _act(self, rule: Rule, op: Op) -> _Act:
        action = rule.action(op)
        if isinstance(action, Value):
            return _always(Outcome(Verdict.VALUE, rule.where, action.value))
        if isinstance(action, Python):
            return self._handler(action.function, action.name, rule.where)
        if isinstance(action, Model):
            self.models.prepare(action, rule.where)
            return self._handler(self.models.handler(action), action.name, rule.where)
        if isinstance(action, Host):
            return self._handler(self._host_handler(action, rule), str(action), rule.where)
        if isinstance(action, Counter):
            return self._counter(rule, action)
        if action is Plain.KERNEL:
            return lambda access: self._unruled(access, rule.where)
        if action is Plain.SHADOW:
            return self._shadow(rule.where, rule.reset, rule.scope, rule.bits)
        if action is Plain.FAULT:
            return _always(Outcome(Verdict.FAULT, rule.where))
        if action is Plain.STOP:
            return _always(Outcome(Verdict.STOP, rule.where))
        if action is Plain.IGNORE:
            return _always(_ignored(op, rule.where))
        raise BrokenInvariantError(f"{rule.where}: no way to do {action!r}")

    def _unruled(self, access: Access, rule: str = "kernel") -> Outcome:
        """Do what holds where no rule does, or where the rule says ``kernel``."""
        if access.reason == _FILTER:  # for another rule's sake, or by a default-deny filter
            return Outcome(Verdict.KERNEL, rule)
        return self._defaults[access.reason](access)

    # Doing it

    def _default(self, name: str) -> _Act:
        action, rule = getattr(self.plan.policy.defaults, name), f"defaults.{name}"
        if action is Plain.SHADOW:
            return self._shadow(rule, 0)
        return lambda access: _plain(action, rule, access.op)

    def _shadow(
        self, rule: str, reset: int, scope: Scope = Scope.THREAD, bits: Bits | None = None
    ) -> _Act:
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

    def _counter(self, rule: Rule, counter: Counter) -> _Act:
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

    def _host_handler(self, action: Host, rule: Rule) -> Handler:
        host, cpu = self._host, action.cpu
        if host is None:
            raise UsageError(f"{rule.where} asks for the host's registers: give Dispatcher(host=…)")

        def answer(access: Access) -> int | None:
            try:
                if access.op == _READ:
                    return host.read(cpu, access.index)
                host.write(cpu, access.index, access.value)
            except OSError as error:
                if error.errno == errno.EIO:
                    raise Fault from None  # the host's CPU faulted
                raise
            return None

        return answer

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
        return _plain(self.plan.policy.defaults.on_error, "defaults.on_error", access.op)


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


def _plain(action: Plain, rule: str, op: Op) -> Outcome:
    if action is Plain.FAULT:
        return Outcome(Verdict.FAULT, rule)
    return _ignored(op, rule) if action is Plain.IGNORE else Outcome(Verdict.STOP, rule)


def _ignored(op: Op, rule: str) -> Outcome:
    return Outcome(Verdict.VALUE if op == Op.READ else Verdict.DONE, rule)
