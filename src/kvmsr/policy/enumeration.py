# SPDX-License-Identifier: Apache-2.0
"""
What guests look at first
-------------------------

Operating systems and tools access many MSRs only where a CPUID bit says that they are there. A rule
for an MSR has no effect on a guest that does not look.
"""

from kvmsr.msr import Enumerated, enumerated
from kvmsr.policy.actions import Plain
from kvmsr.policy.policy import Policy

__all__ = ("enumerated_by",)


def enumerated_by(policy: Policy) -> list[Enumerated]:
    """
    Return the CPUID features all of whose MSRs *policy* answers when a guest reads them.

    Only rules count. What is ignored, as KVM itself ignores MSRs that it does not know, is not
    answered; nor is what faults, or is left to KVM.
    """
    return [one for one in enumerated() if all(_answers(policy, index) for index in one.msrs)]


def _answers(policy: Policy, index: int) -> bool:
    """Return whether a rule gives reads of MSR *index* a value."""
    for rule in policy.rules:
        if rule.read is None or rule.never:
            continue
        if any(first <= index <= last for first, last in rule.msrs):
            if not isinstance(rule.read, Plain) or rule.read is Plain.SHADOW:
                return True
            if rule.when is None:
                return False
    return False
