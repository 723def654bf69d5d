# SPDX-License-Identifier: Apache-2.0
"""
Policy
------

What the owner of a virtual machine wants, as plain values. :mod:`kvmsr.policy.file` reads and
writes policy files; :mod:`kvmsr.policy.plan` compiles policies for a KVM and lints them.
"""

from kvmsr.policy.access import Access, Fault, Handler, Op, Reason, Where
from kvmsr.policy.actions import Action, Counter, Host, Model, Plain, Python, Value
from kvmsr.policy.bits import BitKind, Bits
from kvmsr.policy.policy import Defaults, Policy, on_read, on_write
from kvmsr.policy.rule import Log, Place, Rule
from kvmsr.policy.topology import Scope, Topology
from kvmsr.policy.when import Addresses, When

__all__ = (
    "Access",
    "Action",
    "Addresses",
    "BitKind",
    "Bits",
    "Counter",
    "Defaults",
    "Fault",
    "Handler",
    "Host",
    "Log",
    "Model",
    "Op",
    "Place",
    "Plain",
    "Policy",
    "Python",
    "Reason",
    "Rule",
    "Scope",
    "Topology",
    "Value",
    "When",
    "Where",
    "on_read",
    "on_write",
)
