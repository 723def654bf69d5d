# SPDX-License-Identifier: Apache-2.0
"""
Plans
-----

A policy compiled for a KVM: which accesses KVM hands over, by which filter, which rules answer
them, and what the owner of the policy should know about it.
"""

from kvmsr.policy.plan.facts import KernelFacts
from kvmsr.policy.plan.filter import Filter, FilterRange
from kvmsr.policy.plan.lint import Lint, LintId, x2apic_errors
from kvmsr.policy.plan.observe import NotObserved, not_observed_lines
from kvmsr.policy.plan.plan import Plan, compile_policy
from kvmsr.policy.plan.segments import Segment, Table

__all__ = (
    "Filter",
    "FilterRange",
    "KernelFacts",
    "Lint",
    "LintId",
    "NotObserved",
    "Plan",
    "Segment",
    "Table",
    "compile_policy",
    "not_observed_lines",
    "x2apic_errors",
)
