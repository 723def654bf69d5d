# SPDX-License-Identifier: Apache-2.0
"""
Machine
-------

Runs a guest: :class:`Machine`; :class:`Boot`, which says what it boots, and :class:`Disk`.
"""

from kvmsr.machine.board import Disk
from kvmsr.machine.driver import MachineDriver
from kvmsr.machine.loaders import Boot, Loaded
from kvmsr.machine.machine import Machine
from kvmsr.msr import Feature, find_feature

__all__ = (
    "Boot",
    "Disk",
    "Feature",
    "Loaded",
    "Machine",
    "MachineDriver",
    "find_feature",
)
