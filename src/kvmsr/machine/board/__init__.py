# SPDX-License-Identifier: Apache-2.0
"""
Board
-----

The few devices that guests need.
"""

from kvmsr.machine.board.board import COM1, Board, BoardEvents
from kvmsr.machine.board.bus import Bus, Device
from kvmsr.machine.board.virtio import Disk, DiskImage

__all__ = ("COM1", "Board", "BoardEvents", "Bus", "Device", "Disk", "DiskImage")
