# SPDX-License-Identifier: Apache-2.0
"""
Machine
-------

A guest to run: :class:`Machine`, and what it is given and gives back.
"""

from kvmsr.machine.cpuid import Feature, find_feature
from kvmsr.machine.loaders import Boot, Loaded
from kvmsr.machine.machine import Machine

__all__ = (
    "Boot",
    "Feature",
    "Loaded",
    "Machine",
    "find_feature",
)
