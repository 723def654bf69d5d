"""Registers whose guests need not exist: what a dispatcher answers is written as a trace."""

import numpy as np

from kvmsr.dispatch import Dispatcher
from kvmsr.policy import Access, Op, Policy, Reason
from kvmsr.policy.plan import compile_policy
from kvmsr.trace.file import EVENT, LATENCY, OPS, OUTCOMES, REASONS
from kvmsr.trace.file.columns import VALUE
from tests.trace.file.made import trace

MSR = 0x474F4F00  # unknown to every KVM


def run(rules, script, index=MSR, reason=Reason.UNKNOWN):
    """
    Return the outcomes that *rules*, or a policy, give to accesses.

    :param script: of each access the time, vCPU, direction and value; a fifth element is the MSR.
    """
    policy = rules if isinstance(rules, Policy) else Policy(rules)
    now = 0
    dispatcher = Dispatcher(compile_policy(policy), clock=lambda: now)
    outcomes = []
    for time, vcpu, op, value, *other in script:
        now = time
        msr = other[0] if other else index
        access = Access(vcpu, Op(op), msr, value if op == "write" else 0, reason)
        outcomes.append(dispatcher.handle(access))
    return outcomes


def recorded(path, script, outcomes, index=MSR, reason=Reason.UNKNOWN, **head):
    """Write the trace of accesses and their outcomes, and return its path."""
    rows = np.zeros(len(script), EVENT)
    rules = list(dict.fromkeys(outcome.rule for outcome in outcomes))
    for row, (time, vcpu, op, value, *other), outcome in zip(rows, script, outcomes, strict=True):
        verdict = outcome.verdict.value
        row["time_ns"] = row["guest_ns"] = time
        row["vcpu"], row["op"] = vcpu, OPS.index(op)
        row["index"] = other[0] if other else index
        row["value"] = outcome.value if verdict == "value" else value if op == "write" else 0
        row["reason"], row["outcome"] = REASONS.index(reason), OUTCOMES.index(verdict)
        row["rule"], row["count"], row["latency_ns"] = rules.index(outcome.rule), 1, 500
        row["has"] = LATENCY | (VALUE if verdict == "value" or op == "write" else 0)
    return trace(path, rows, rules, **head)
