# SPDX-License-Identifier: Apache-2.0
"""
What guests look at first
-------------------------

Operating systems and tools access many MSRs only where a CPUID bit says that they are there. A rule
for an MSR has no effect on a guest that does not look.
"""

from collections.abc import Container
from typing import Final

from kvmsr.msr import Enumerated, catalog, enumerated
from kvmsr.policy.actions import Model, Plain
from kvmsr.policy.policy import Policy

__all__ = ("enumerated_by", "enumeration_lines", "enumeration_of", "unseen_line")

_WIDE: Final = 256
"""MSRs in a range from which on its author does not mean each one of them."""


def enumerated_by(policy: Policy) -> list[Enumerated]:
    """
    Return the CPUID features all of whose MSRs *policy* answers when a guest reads them.

    Only rules count, and of those for ranges of more than 256 MSRs only the ones that name a model:
    a rule for everything does not know what an MSR means. What is ignored, as KVM itself ignores
    MSRs that it does not know, is not answered; nor is what faults, or is left to KVM.
    """
    return [one for one in enumerated() if all(_answers(policy, index) for index in one.msrs)]


def _answers(policy: Policy, index: int) -> bool:
    """Return whether a rule gives reads of MSR *index* a value."""
    for rule in policy.rules:
        if rule.read is None or rule.never:
            continue
        width = next((b - a + 1 for a, b in rule.msrs if a <= index <= b), 0)
        if not width:
            continue
        gives_value = not isinstance(rule.read, Plain) or rule.read is Plain.SHADOW
        if gives_value and (width <= _WIDE or isinstance(rule.read, Model)):
            return True
        if rule.when is None:
            return False
    return False


def enumeration_lines(policy: Policy) -> list[str]:
    """Return what the owner of *policy* should know about the features that it answers."""
    names = ", ".join(map(str, enumerated_by(policy)))
    return [
        f"guests look for some of these MSRs only where CPUID shows {names}: kvmsr run shows it,"
        " another VMM has to"
    ] * bool(names)


def enumeration_of(policy: Policy, index: int) -> list[str]:
    """Return by what CPUID feature guests know that MSR *index* is there, and who shows it."""
    one = next((one for one in enumerated() if index in one.msrs), None)
    if one is None:
        return []
    missing = [other for other in one.msrs if not _answers(policy, other)]
    if not missing:
        who = "kvmsr run shows it under this policy, another VMM has to"
    else:
        first = catalog().name(missing[0]) or f"{missing[0]:#x}"
        who = f"kvmsr run shows it if KVM has it, as no rule answers reads of {first}"
    return [f"guests look here only where CPUID shows {one}; {who}"]


def unseen_line(policy: Policy, vendor: str, accessed: Container[int]) -> list[str]:
    """
    Return a line about the features that *policy* answers, and that a guest did not look for.

    :param vendor: the CPU's vendor, CPUID's 12 letters.
    :param accessed: the MSRs that the guest accessed.
    """
    unseen = [
        str(one)
        for one in enumerated_by(policy)
        if one.is_of(vendor) and not any(index in accessed for index in one.msrs)
    ]
    return [
        f"no guest looked for MSRs that the policy answers and CPUID announces by"
        f" {', '.join(unseen)}: whether a guest sees that is up to the VMM"
    ] * bool(unseen)
