# SPDX-License-Identifier: Apache-2.0
"""
Machine
-------

Runs a guest: :class:`Machine`, and :class:`Boot`, which says what it boots.
"""

from kvmsr.machine.driver import MachineDriver
from kvmsr.machine.loaders import Boot, Loaded
from kvmsr.machine.machine import Machine
from kvmsr.msr import Feature, find_feature

__all__ = (
    "Boot",
    "Feature",
    "Loaded",
    "Machine",
    "MachineDriver",
    "find_feature",
)
