# SPDX-License-Identifier: Apache-2.0
"""
kvmsr
-----

A policy for every model-specific register a KVM guest touches.

These names are the library's face; each is imported from its room when it is first used, so that
``import kvmsr`` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kvmsr._version import __version__

if TYPE_CHECKING:
    from kvmsr.dispatch import Dispatcher, Outcome, Verdict
    from kvmsr.errors import KvmsrError
    from kvmsr.kvm import Kvm, Vcpu, Vm
    from kvmsr.machine import Boot, End, EndKind, Machine, RunResult
    from kvmsr.msr import catalog
    from kvmsr.policy import (
        Access,
        Defaults,
        Fault,
        KernelFacts,
        Model,
        Op,
        Plan,
        Policy,
        Reason,
        Rule,
        Scope,
        Topology,
        Value,
        compile_policy,
        load_policy,
        on_read,
        on_write,
        parse_policy,
    )

_ROOMS = {
    "dispatch": ("Dispatcher", "Outcome", "Verdict"),
    "errors": ("KvmsrError",),
    "kvm": ("Kvm", "Vcpu", "Vm"),
    "machine": ("Boot", "End", "EndKind", "Machine", "RunResult"),
    "msr": ("catalog",),
    "policy": (
        "Access",
        "Defaults",
        "Fault",
        "KernelFacts",
        "Model",
        "Op",
        "Plan",
        "Policy",
        "Reason",
        "Rule",
        "Scope",
        "Topology",
        "Value",
        "compile_policy",
        "load_policy",
        "on_read",
        "on_write",
        "parse_policy",
    ),
}

__all__ = (
    "Access",
    "Boot",
    "Defaults",
    "Dispatcher",
    "End",
    "EndKind",
    "Fault",
    "KernelFacts",
    "Kvm",
    "KvmsrError",
    "Machine",
    "Model",
    "Op",
    "Outcome",
    "Plan",
    "Policy",
    "Reason",
    "Rule",
    "RunResult",
    "Scope",
    "Topology",
    "Value",
    "Vcpu",
    "Verdict",
    "Vm",
    "__version__",
    "catalog",
    "compile_policy",
    "load_policy",
    "on_read",
    "on_write",
    "parse_policy",
)

_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'kvmsr' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kvmsr.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
