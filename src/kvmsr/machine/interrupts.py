# SPDX-License-Identifier: Apache-2.0
"""
Interrupt lines
---------------

How a PC's interrupt lines are wired to its interrupt controllers.
"""

from typing import Final

from kvmsr.abi import Chip, RoutingType, vm

__all__ = ("interrupt_routes",)

_IOAPIC_PINS: Final = 24


def interrupt_routes() -> list[vm.IrqRoutingEntry]:
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
