# SPDX-License-Identifier: Apache-2.0
"""
Machine
-------

A guest to run: :class:`Machine`, and what it is given and gives back.
"""

from kvmsr.machine.cpuid import Feature, find_features
from kvmsr.machine.loaders import Boot, Loaded
from kvmsr.machine.machine import Machine
from kvmsr.machine.result import End, EndKind, RunResult

__all__ = (
    "Boot",
    "End",
    "EndKind",
    "Feature",
    "Loaded",
    "Machine",
    "RunResult",
    "find_features",
)
