# SPDX-License-Identifier: Apache-2.0
"""
Virtio
------

Devices made for virtual machines: disks and a console, on the PCI bus.
"""

from kvmsr.machine.board.virtio.block import VirtioBlock
from kvmsr.machine.board.virtio.console import VirtioConsole
from kvmsr.machine.board.virtio.device import VirtioDevice
from kvmsr.machine.board.virtio.image import Disk, DiskImage
from kvmsr.machine.board.virtio.pci import VirtioPci

__all__ = ("Disk", "DiskImage", "VirtioBlock", "VirtioConsole", "VirtioDevice", "VirtioPci")
