# SPDX-License-Identifier: Apache-2.0
"""
Trying rules on what was seen
-----------------------------

The dispatcher decides the recorded accesses once more, under the learned rules.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from kvmsr.dispatch import Dispatcher, Outcome
from kvmsr.policy import Access, Op, Policy, Rule
from kvmsr.policy.plan import compile_policy
from kvmsr.trace.learn.seen import Seen, Stream

__all__ = ("misses",)

_U64: Final = (1 << 64) - 1
_READ: Final = Op.READ


def misses(rules: Iterable[Rule], streams: Sequence[Stream], tolerance: int = 0) -> int:
    """
    Return the number of accesses that *rules* give another outcome than the recorded one.

    :param tolerance: how far off a value that is read may be.
    """
    plan = compile_policy(Policy(rules))
    missed = 0
    for stream in streams:
        now = [0]
        dispatcher = Dispatcher(plan, clock=lambda now=now: now[0])  # type: ignore[misc]
        for seen in stream.seen:
            now[0] = seen.time
            value = 0 if seen.op == _READ else seen.value
            access = Access(seen.vcpu, seen.op, _index(plan.policy), value, seen.reason)
            missed += not _same(seen, dispatcher.handle(access), tolerance)
    return missed


def _index(policy: Policy) -> int:
    return policy.rules[0].msrs[0][0]


def _same(seen: Seen, outcome: Outcome, tolerance: int) -> bool:
    if outcome.verdict.value != seen.outcome:
        return False
    if seen.outcome != "value" or seen.value == outcome.value:
        return True
    off = seen.value - outcome.value & _U64
    return min(off, _U64 + 1 - off) <= tolerance
