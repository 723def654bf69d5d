# SPDX-License-Identifier: Apache-2.0
"""
Policy
------

What the owner of a virtual machine wants, as plain values, and its plan for a KVM.
"""

from kvmsr.policy.access import Access, Fault, Handler, Op, Reason
from kvmsr.policy.actions import Action, Counter, Host, Model, Plain, Python, Value
from kvmsr.policy.bits import BitKind, Bits
from kvmsr.policy.explain import Case, Effect, Explanation, explain
from kvmsr.policy.filter import Filter, FilterRange
from kvmsr.policy.kernel import KernelFacts
from kvmsr.policy.lint import Lint, LintId
from kvmsr.policy.model import Defaults, Policy, on_read, on_write
from kvmsr.policy.parse import load_policy, parse_policy
from kvmsr.policy.plan import Plan, compile_policy
from kvmsr.policy.rule import Log, Place, Rule
from kvmsr.policy.segments import Segment, Table
from kvmsr.policy.topology import Scope, Topology
from kvmsr.policy.when import When

__all__ = (
    "Access",
    "Action",
    "BitKind",
    "Bits",
    "Case",
    "Counter",
    "Defaults",
    "Effect",
    "Explanation",
    "Fault",
    "Filter",
    "FilterRange",
    "Handler",
    "Host",
    "KernelFacts",
    "Lint",
    "LintId",
    "Log",
    "Model",
    "Op",
    "Place",
    "Plain",
    "Plan",
    "Policy",
    "Python",
    "Reason",
    "Rule",
    "Scope",
    "Segment",
    "Table",
    "Topology",
    "Value",
    "When",
    "compile_policy",
    "explain",
    "load_policy",
    "on_read",
    "on_write",
    "parse_policy",
)
