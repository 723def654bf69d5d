# SPDX-License-Identifier: Apache-2.0
"""
Interrupt lines
---------------

How a PC's interrupt lines are wired to its interrupt controllers.
"""

from typing import Final

from kvmsr.abi import PIT_SPEAKER_DUMMY, Chip, RoutingType, vm
from kvmsr.kvm import Vm

__all__ = ("create_interrupt_controllers",)

_IOAPIC_PINS: Final = 24


def create_interrupt_controllers(machine: Vm) -> None:
    """Create KVM's interrupt controllers and timer, and wire them; before any vCPU."""
    machine.create_irqchip()
    machine.create_pit2(PIT_SPEAKER_DUMMY)
    machine.set_gsi_routing(_routes())


def _routes() -> list[vm.IrqRoutingEntry]:
    """Return the routes for KVM_SET_GSI_ROUTING; the timer, line 0, is on the IOAPIC's pin 2."""
    routes = []

    def connect(gsi: int, chip: Chip, pin: int) -> None:
        route = vm.IrqRoutingEntry(gsi=gsi, type=RoutingType.IRQCHIP)
        route.u.irqchip.irqchip = chip
        route.u.irqchip.pin = pin
        routes.append(route)

    for gsi in range(_IOAPIC_PINS):
        if gsi < 16 and gsi != 2:
            connect(gsi, Chip.PIC_MASTER if gsi < 8 else Chip.PIC_SLAVE, gsi % 8)
        if gsi != 2:
            connect(gsi, Chip.IOAPIC, gsi or 2)
    return routes
