# SPDX-License-Identifier: Apache-2.0
"""
Policy
------

What the owner of a virtual machine wants, as plain values, and its plan for a KVM.
"""

from kvmsr.policy.access import Access, Fault, Handler, Op, Reason
from kvmsr.policy.filter import Filter, FilterRange
from kvmsr.policy.kernel import KernelFacts
from kvmsr.policy.model import (
    Action,
    Defaults,
    Model,
    Plain,
    Policy,
    Python,
    Rule,
    Value,
    on_read,
    on_write,
)
from kvmsr.policy.parse import load_policy, parse_policy
from kvmsr.policy.plan import Plan, compile_policy
from kvmsr.policy.segments import Segment, Table
from kvmsr.policy.topology import Scope, Topology

__all__ = (
    "Access",
    "Action",
    "Defaults",
    "Fault",
    "Filter",
    "FilterRange",
    "Handler",
    "KernelFacts",
    "Model",
    "Op",
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
    "compile_policy",
    "load_policy",
    "on_read",
    "on_write",
    "parse_policy",
)
