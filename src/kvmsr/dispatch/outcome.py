# SPDX-License-Identifier: Apache-2.0
"""
Outcomes
--------

What becomes of an access.
"""

import enum
from typing import NamedTuple

from kvmsr.policy import Op, Plain

__all__ = ("Outcome", "Verdict", "plain_outcome")


class Verdict(enum.Enum):
    """
    What the guest gets.

    ``KERNEL`` asks the caller, who has the vCPU, to pass the access on to KVM; if KVM refuses it,
    :meth:`~kvmsr.dispatch.Dispatcher.refused` decides. ``STOP`` ends the run, and the access gets
    no answer.
    """

    VALUE = "value"
    DONE = "done"
    FAULT = "fault"
    STOP = "stop"
    KERNEL = "kernel"


class Outcome(NamedTuple):
    """
    What becomes of an access.

    :ivar verdict: what the guest gets.
    :ivar rule: what decided it: where the rule was written, or ``defaults.unknown`` and so on.
    :ivar value: the value that a read returns, 0 to 2**64 - 1.
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
