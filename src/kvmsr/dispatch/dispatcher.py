# SPDX-License-Identifier: Apache-2.0
"""
The dispatcher
--------------

A plan and its register state at run time: an access goes in, an outcome comes out.
"""

# How an access is decided
#
# The constructor prepares every rule once for each direction, as a Step: the test of its condition
# and the function that performs its action. The first access to an MSR looks up which rules apply
# to it (Plan.segment) and chains their steps into one function, which is cached. After that an
# access costs one dictionary lookup and a call. The guest chooses the MSRs, so the cache is
# limited; beyond the limit the chain is built again at every access.
#
# The chain tries the rules in the policy's order, and the first one whose condition holds acts. If
# none does, the reason decides. An access that KVM gave up as unknown or invalid goes to the
# policy's default. A filtered one was denied only because some other access to this MSR may need a
# rule, or because the filter denies by default, so it goes back to KVM.
#
# "Back to KVM" is an outcome like any other (Verdict.KERNEL), because only the caller has the vCPU.
# It is not final: KVM may refuse the access when it is asked. The access then has a new reason,
# and refused() decides it a second time. Only rules that were waiting for that reason are tried: a
# rule that also takes filtered accesses had its turn the first time, and trying it again would
# count the access twice for "after" and "every". A KERNEL outcome is not logged either; the log
# shows what became of the access in the end.
#
# kvm.ignore_msrs=1 needs one more step. KVM then pretends to know every MSR and never gives one up
# as unknown, so the plan's filter denies those that it does not know. They arrive as filtered,
# and the chain gives them back the reason that policies are written for: unknown.
#
# Several vCPU threads call handle() at once, without a lock. Steps do not change, and two threads
# that build the same chain build equal ones. State that changes (shadows, models, match counts)
# protects itself.

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kvmsr.dispatch.conditions import Conditions, Test
from kvmsr.dispatch.handlers import HandlerFailure, Handlers, host_handler
from kvmsr.dispatch.host import HostMsrs
from kvmsr.dispatch.log import AccessLog, Sink
from kvmsr.dispatch.models import Cpu, Instances
from kvmsr.dispatch.outcome import Outcome, Verdict, plain_outcome
from kvmsr.dispatch.registers import Registers
from kvmsr.dispatch.state import holder_of
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
    Value,
    Where,
)
from kvmsr.policy.plan import Plan

__all__ = ("Act", "Dispatcher", "Step")

_U64: Final = (1 << 64) - 1
_MAX_CACHED: Final = 4096
_UNRULED: Final = "kernel"

# Every access uses these, and looking up a member of an enumeration costs more than using it.
_READ, _FILTER = Op.READ, Reason.FILTER
_VALUE, _DONE, _FAULT = Verdict.VALUE, Verdict.DONE, Verdict.FAULT

# Costs half as much as the constructor that NamedTuple generates.
_outcome: Callable[..., Outcome] = tuple.__new__

Act = Callable[[Access], Outcome]


class Step(NamedTuple):
    """
    A rule prepared for one direction.

    :ivar rule: the rule.
    :ivar fails: returns the key of the rule's condition that fails for an access, or "" if the
        condition holds.
    :ivar act: performs the rule's action and logs it.
    """

    rule: Rule
    fails: Test
    act: Act


class Dispatcher:
    """
    Decides accesses under a plan.

    The threads of several vCPUs may call it at once.

    :param vcpus: number of vCPUs, for models that depend on it.
    :param clock: returns the guest's time in nanoseconds. It must never go backwards.
    :param rip: returns a vCPU's RIP, for conditions on it. It is called in that vCPU's thread.
    :param where: returns where a vCPU's guest is, for conditions on callers; called likewise.
    :param host: the host's registers, for ``host`` actions.
    :param log: receives every access that the policy logs, with its outcome and a log line.
    :param memory: returns the given number of bytes at an address of the guest's memory, or None
        if there is no memory; for models that read it, as *cpu* is.
    :param registers: the VM's registers, if another policy has been in force; by default, new ones.
    :param inert: neither set up nor call functions, models and the host's registers. An access
        that one of them would answer must not be passed in.
    :ivar plan: the plan.
    :ivar conditions: the conditions of the rules.
    :ivar models: the register models.
    :ivar shadows: the values that the guest has written to shadowed MSRs.
    :raises UsageError: if a rule needs *rip*, *where* or *host*, and it is not given.
    :raises PolicyError: if a register model does not accept its parameters.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        vcpus: int = 1,
        clock: Callable[[], int] = time.monotonic_ns,
        rip: Callable[[int], int] | None = None,
        where: Callable[[int], Where] | None = None,
        host: HostMsrs | None = None,
        log: Sink | None = None,
        memory: Callable[[int, int], bytes | None] = lambda address, size: None,
        cpu: Cpu | None = None,
        registers: Registers | None = None,
        inert: bool = False,
    ) -> None:
        self.plan, self._host, self._clock = plan, host, clock
        self.conditions = Conditions(rip, where)
        self._registers = registers = registers or Registers()
        if registers.begun is None:
            registers.begun = clock()
        self._inert, self._log = inert, AccessLog(log)
        self.models = Instances(plan.policy.topology, vcpus, clock, memory, registers.models, cpu)
        self.shadows, self._handlers = registers.shadows, Handlers(plan.policy.defaults.on_error)
        # The chain of steps for each MSR, built at the first access to it.
        self._reads, self._writes = dict[int, Act](), dict[int, Act]()
        self._by_rule: dict[tuple[int, Op], Step] = {}
        for number, rule in enumerate(plan.policy.rules):
            for op in Op:
                if rule.action(op) is not None:
                    self._by_rule[id(rule), op] = self._prepare(rule, number, op)
        logged = self._log.around
        self._defaults = {
            Reason.UNKNOWN: logged(self._default("unknown"), Log.ONCE),
            Reason.INVALID: logged(self._default("invalid"), Log.ONCE),
        }

    def handle(self, access: Access) -> Outcome:
        """Return the outcome of *access*."""
        acts = self._reads if access.op == _READ else self._writes
        act = acts.get(access.index)
        if act is None:
            act = self._find(access.op, access.index)
            if len(acts) < _MAX_CACHED:
                acts[access.index] = act
        return act(access)

    def restated(self, access: Access) -> Access:
        """
        Return *access* with the reason that handlers, the log and the summary report.

        With ``ignore_msrs`` KVM pretends to know every MSR, so the filter denies those that it does
        not know. They arrive as filtered, and are reported as unknown.
        """
        swallows = access.reason == _FILTER and self.plan.kernel.ignore_msrs
        if swallows and not self.plan.segment(access.op, access.index).known:
            return access._replace(reason=Reason.UNKNOWN)
        return access

    def passed(self, access: Access, outcome: Outcome) -> None:
        """Log an access that is only observed, the first time; *outcome* is KVM's answer."""
        if self.plan.policy.observe and outcome.rule == _UNRULED:
            self._log.see(access, outcome, Log.ONCE)

    def refused(self, access: Access, passed: Outcome) -> Outcome:
        """
        Return the outcome of an access that was passed on to KVM and that KVM refused.

        :param access: the access, with KVM's reason for refusing it.
        :param passed: the outcome that passed it on.
        """
        for step in self.steps_refused(access.op, access.index, passed):
            if not step.fails(access):
                return step.act(access)
        return self._defaults[access.reason](access)

    def steps(self, op: Op, index: int) -> tuple[Step, ...]:
        """Return the rules to try for an access, in order."""
        return tuple(self._by_rule[id(rule), op] for rule in self.plan.segment(op, index).rules)

    def steps_refused(self, op: Op, index: int, passed: Outcome) -> Iterator[Step]:
        """
        Yield the rules to try after KVM has refused an access that was passed on to it.

        These are the rules before the one that passed it on that hold for unknown or invalid
        accesses only. The others have already been tried, and would count the access twice.
        """
        for step in self.steps(op, index):
            when = step.rule.when
            passes = step.rule.action(op) is Plain.KERNEL and step.rule.where == passed.rule
            if when is None or passes:
                return
            if not when.takes(Reason.FILTER):
                yield step

    def unruled(self, access: Access, rule: str = _UNRULED) -> Outcome:
        """Return the outcome if no rule holds, or if the one that holds says ``kernel``."""
        if access.reason == _FILTER:  # denied for another rule, or by a default-deny filter
            return Outcome(Verdict.KERNEL, rule)
        return self._defaults[access.reason](access)

    def act(self, rule: Rule, op: Op) -> Act:
        """Return the function that performs *rule*'s action, without testing its condition."""
        return self._by_rule[id(rule), op].act

    @property
    def failures(self) -> list[HandlerFailure]:
        """Return the first handler failures, at most 32."""
        return self._handlers.failures

    @property
    def failure_count(self) -> int:
        """Return the number of handler failures."""
        return self._handlers.failure_count

    @property
    def logs(self) -> bool:
        """Whether log lines are written at all."""
        return self._log.listens

    def log(self, rule: Rule | None, access: Access, outcome: Outcome) -> None:
        """
        Log an access that was answered elsewhere.

        :param rule: the rule that decided it, whose ``log`` applies; None for a default.
        """
        self._log.see(access, outcome, Log.ONCE if rule is None else rule.log)

    def elapsed(self) -> int:
        """Return the time since the guest began, in nanoseconds."""
        return max(self._clock() - (self._registers.begun or 0), 0)

    def state(self) -> dict[str, Any]:
        """
        Return everything that must survive a snapshot, as JSON types.

        No vCPU may run during the call.
        """
        return {
            "shadows": self.shadows.state(),
            "models": self.models.state(),
            "conditions": self.conditions.state(),
            "elapsed": self.elapsed(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Restore a state returned by :meth:`state`.

        No vCPU may run during the call.

        :raises PolicyError: if it was saved under another policy.
        """
        self.conditions.restore(state["conditions"])
        self.models.restore(state["models"])
        self.shadows.restore(state["shadows"])
        self._registers.begun = self._clock() - state["elapsed"]

    def reset(self) -> None:
        """Give registers and models the state that they began with. Match counts go on."""
        self.models.reset()
        self.shadows.forget()
        self._registers.begun = self._clock()

    # Preparing

    def _find(self, op: Op, index: int) -> Act:
        steps = [(step.fails, step.act) for step in self.steps(op, index)]
        segment = self.plan.segment(op, index)
        swallowed = self.plan.swallowed(segment)  # by ignore_msrs: KVM pretends to know the MSR
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
            log = Log.NEVER  # KVM answers it, or a default does, which logs by itself
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

    # Acting

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
        holder = holder_of(self.plan.policy.topology, scope)

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
        """Return a counter's action. What is stored is the value it had when the guest began."""
        shadows, where, reset = self.shadows, rule.where, rule.reset
        holder = holder_of(self.plan.policy.topology, rule.scope)

        def act(access: Access) -> Outcome:
            who, ticks = holder(access.vcpu), counter.ticks(self.elapsed())
            if access.op == _READ:
                value = shadows.read(who, access.index, reset) + ticks & _U64
                return Outcome(_VALUE, where, value)
            kept = shadows.write(who, access.index, access.value - ticks & _U64)
            return Outcome(_DONE if kept else _FAULT, where)

        return act


def _never(access: Access) -> Outcome:
    raise BrokenInvariantError(f"an inert dispatcher was asked for a {access}")


def _always(outcome: Outcome) -> Act:
    return lambda access: outcome
