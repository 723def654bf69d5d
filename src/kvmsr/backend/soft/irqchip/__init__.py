# SPDX-License-Identifier: Apache-2.0
"""
Interrupt controllers
---------------------

KVM's in-kernel devices: the 8259 pair, the 8254, the I/O APIC and the local APICs. No device knows
the CPU, and none has a thread: who calls them holds the VM's lock.
"""

from kvmsr.backend.soft.irqchip.chip import IrqChip
from kvmsr.backend.soft.irqchip.events import LapicEvents
from kvmsr.backend.soft.irqchip.ioapic import Ioapic
from kvmsr.backend.soft.irqchip.lapic import Lapic
from kvmsr.backend.soft.irqchip.pit import Pit

__all__ = ("Ioapic", "IrqChip", "Lapic", "LapicEvents", "Pit")
