# SPDX-License-Identifier: Apache-2.0
"""
Where interrupts go
-------------------

A GSI leads to pins and messages, a message to local APICs (arch/x86/kvm/irq_comm.c,
virt/kvm/irqchip.c, and kvm_apic_match_dest of arch/x86/kvm/lapic.c).
"""

import errno
import os
from collections.abc import Iterable
from typing import Any, Final

from kvmsr.abi import Chip, RoutingType
from kvmsr.backend.soft.irqchip.ioapic import PINS
from kvmsr.backend.soft.irqchip.lapic import Lapic
from kvmsr.backend.soft.irqchip.message import LOWEST, Message

__all__ = ("Route", "default_routes", "find_targets", "make_routes")

_MAX_GSI: Final = 4096
_PIC_LINES: Final = 16
_VALID_DEVID: Final = 1 << 0  # KVM_MSI_VALID_DEVID
_SELF, _ALL, _OTHERS = 1, 2, 3
_BROADCAST, _X2APIC_BROADCAST = 0xFF, 0xFFFF_FFFF
_FLAT, _CLUSTER = 0xFFFF_FFFF, 0x0FFF_FFFF

Route = tuple[str, int, int]
"""``pic`` or ``ioapic`` and a line; or ``msi``, an address and data."""


# GSIs


def default_routes() -> dict[int, list[Route]]:
    """Return KVM's: each line to the I/O APIC's pin and the 8259 pair's IRQ of that number."""
    return {
        gsi: [("ioapic", gsi, 0), *([("pic", gsi, 0)] if gsi < _PIC_LINES else [])]
        for gsi in range(PINS)
    }


def make_routes(entries: Iterable[Any]) -> dict[int, list[Route]]:
    """
    Return the routes that struct kvm_irq_routing_entry's stand for.

    :raises OSError: EINVAL for a line that there is not, and for a GSI with two routes to a chip,
        or an MSI and another route.
    """
    routes: dict[int, list[Route]] = {}
    for entry in entries:
        if entry.gsi >= _MAX_GSI:
            raise _invalid()
        route, others = _route(entry), routes.setdefault(entry.gsi, [])
        if any("msi" in (route[0], other[0]) or _chip(route) == _chip(other) for other in others):
            raise _invalid()
        others.append(route)
    return routes


def _route(entry: Any) -> Route:
    if entry.type == RoutingType.MSI and not entry.flags & ~_VALID_DEVID:
        msi = entry.u.msi
        return ("msi", msi.address_lo | msi.address_hi << 32, msi.data)
    if entry.type == RoutingType.IRQCHIP and not entry.flags:
        chip, pin = entry.u.irqchip.irqchip, entry.u.irqchip.pin
        if chip in (Chip.PIC_MASTER, Chip.PIC_SLAVE) and pin < _PIC_LINES // 2:
            return ("pic", pin + 8 * (chip == Chip.PIC_SLAVE), 0)
        if chip == Chip.IOAPIC and pin < PINS:
            return ("ioapic", pin, 0)
    raise _invalid()


def _chip(route: Route) -> tuple[str, bool]:
    """Return which of the three chips a route leads to."""
    return route[0], route[0] == "pic" and route[1] >= _PIC_LINES // 2


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


# Messages


def find_targets(
    lapics: Iterable[Lapic],
    message: Message,
    sender: Lapic | None,
    shorthand: int,
    *,
    to_one: bool,
) -> list[Lapic]:
    """Return whom a message is for; *to_one*: it is for one of them, as in mode LOWEST."""
    targets = [
        lapic for lapic in lapics
        if lapic.is_enabled and _is_target(lapic, message, sender, shorthand)
    ]  # fmt: skip
    # KVM takes a physical broadcast to the lowest for one to all.
    is_to_all = not message.logical and message.dest == _BROADCAST
    if to_one or (message.mode == LOWEST and not is_to_all):
        return _arbitrate(targets, message)
    return targets


def _arbitrate(targets: list[Lapic], message: Message) -> list[Lapic]:
    """Choose by the vector, as KVM does by default (vector_hashing), and not by priority."""
    able = [lapic for lapic in targets if lapic.is_software_enabled]
    return [able[message.vector % len(able)]] if able else []


def _is_target(lapic: Lapic, message: Message, sender: Lapic | None, shorthand: int) -> bool:
    if shorthand == _SELF:
        return lapic is sender
    if shorthand in (_ALL, _OTHERS):
        return shorthand == _ALL or lapic is not sender
    # A device's broadcast has 8 bits and is for all; an IPI's is for those in the sender's mode.
    same_form = sender is None or message.wide == lapic.is_x2apic
    if same_form and message.dest == (_X2APIC_BROADCAST if message.wide else _BROADCAST):
        return True
    return _is_logical(lapic, message.dest) if message.logical else _is_id(lapic, message.dest)


def _is_id(lapic: Lapic, dest: int) -> bool:
    # A number that no xAPIC can have is a vCPU's all the same, for that may wait to be started.
    return dest == (lapic.id if lapic.is_x2apic or dest > 0xFF else lapic.xapic_id)


def _is_logical(lapic: Lapic, dest: int) -> bool:
    ldr, dfr = lapic.logical
    if lapic.is_x2apic:
        return ldr >> 16 == dest >> 16 and bool(ldr & dest & 0xFFFF)
    ldr >>= 24
    if dfr == _FLAT:
        return bool(ldr & dest)
    return dfr == _CLUSTER and ldr >> 4 == dest >> 4 and bool(ldr & dest & 0xF)
