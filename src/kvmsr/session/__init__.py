# SPDX-License-Identifier: Apache-2.0
"""
Sessions
--------

A policy at work: the :class:`Session`, and its :class:`RunResult`.
"""

from kvmsr.session.change import Change
from kvmsr.session.facts import VmFacts
from kvmsr.session.position import LastAccess, Position
from kvmsr.session.result import End, EndKind, RunResult, VmReport
from kvmsr.session.session import Session
from kvmsr.session.state import State, kept_state, load_state, parse_state, save_state
from kvmsr.session.vcpu import GuestVcpu

__all__ = (
    "Change",
    "End",
    "EndKind",
    "GuestVcpu",
    "LastAccess",
    "Position",
    "RunResult",
    "Session",
    "State",
    "VmFacts",
    "VmReport",
    "kept_state",
    "load_state",
    "parse_state",
    "save_state",
)
