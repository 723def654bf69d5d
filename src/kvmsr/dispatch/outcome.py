# SPDX-License-Identifier: Apache-2.0
"""
Outcomes
--------

What shall happen to an access.
"""

import enum
from typing import NamedTuple

from kvmsr.policy import Op, Plain

__all__ = ("Outcome", "Verdict", "plain_outcome")


class Verdict(enum.Enum):
    """
    What the guest gets.

    ``KERNEL`` is for whoever holds the vCPU: ask KVM itself, and where KVM refuses,
    :meth:`~kvmsr.dispatch.Dispatcher.refused` has the last word. ``STOP`` ends the run, and the
    access has no answer.
    """

    VALUE = "value"
    DONE = "done"
    FAULT = "fault"
    STOP = "stop"
    KERNEL = "kernel"


class Outcome(NamedTuple):
    """
    What shall happen to an access.

    :ivar verdict: what the guest gets.
    :ivar rule: who said so: where the rule was written, or ``defaults.unknown`` and the like.
    :ivar value: what a read gives, 0 to 2**64 - 1.
    """

    verdict: Verdict
    rule: str
    value: int = 0


def plain_outcome(action: Plain, rule: str, op: Op) -> Outcome:
    """Return the outcome of ``fault``, ``ignore`` or ``stop``."""
    if action is Plain.FAULT:
        return Outcome(Verdict.FAULT, rule)
    if action is Plain.STOP:
        return Outcome(Verdict.STOP, rule)
    return Outcome(Verdict.VALUE if op == Op.READ else Verdict.DONE, rule)
