# SPDX-License-Identifier: Apache-2.0
"""
The chipset
-----------

What QEMU's ``pc`` has of Intel's 440FX on its PCI bus: firmware finds out by it which machine this
is, and where ACPI's registers are. Sources: Intel 82441FX data sheet (290549), 82371SB (290550) and
82371AB (290562); QEMU hw/pci-host/i440fx.c, hw/isa/piix.c, hw/acpi/piix4.c.
"""

from kvmsr.machine.board.pci import Function, Identity, PciBus
from kvmsr.machine.board.small import AcpiPm

__all__ = ("PowerManagement", "add_chipset")

_INTEL = 0x8086
_COMMAND = 0x04
_PMBA, _PMREGMISC = 0x40, 0x80
_PORTS, _ENABLED = 0xFFC0, 1


class PowerManagement(Function):
    """The 82371AB's power management. Firmware says where its ports are, and enables them."""

    def __init__(self) -> None:
        super().__init__(Identity(_INTEL, 0x7113, 0x068000, revision=3))
        self.set(_PMBA, 4, 1, writable=_PORTS)
        self.set(0x5B, 1, 0x02)  # there is no SMM: firmware need not set it up
        self.set(_PMREGMISC, 1, 0, writable=_ENABLED)

    @property
    def ports(self) -> int:
        """Return the first of its ports."""
        return self.get(_PMBA, 2) & _PORTS

    def decodes(self, port: int) -> bool:
        """Return whether *port* is one of those that are enabled."""
        enabled = self.get(_PMREGMISC, 1) & _ENABLED
        return bool(enabled) and self.ports <= port < self.ports + AcpiPm.LENGTH

    def set_up(self) -> None:
        """Put the ports where QEMU's firmware does, and enable them."""
        self.write_config(_PMBA, 2, AcpiPm.BASE)
        self.write_config(_PMREGMISC, 1, _ENABLED)


def add_chipset(bus: PciBus) -> PowerManagement:
    """Put the host bridge into slot 0; ISA bridge and power management are in slot 1."""
    power_management = PowerManagement()
    bus.add(0, _host_bridge())
    bus.add(1, _isa_bridge())
    bus.add(1, power_management, 3)
    return power_management


def _host_bridge() -> Function:
    """Return the 82441FX. All of the low megabyte is RAM here, whatever PAM and SMRAM say."""
    bridge = Function(Identity(_INTEL, 0x1237, 0x060000, revision=2))
    bridge.set(_COMMAND, 2, 0x0006, writable=0x0140)
    bridge.set(0x50, 8, 0, writable=(1 << 64) - 1)
    bridge.set(0x59, 7, 0, writable=(1 << 56) - 1)  # PAM0 to PAM6
    bridge.set(0x72, 1, 0x02, writable=0x7F)  # SMRAM
    return bridge


def _isa_bridge() -> Function:
    """Return the 82371SB's ISA bridge. Its PIRQ registers route nothing: lines are hard-wired."""
    bridge = Function(Identity(_INTEL, 0x7000, 0x060100))
    bridge.set(_COMMAND, 2, 0x0007)
    bridge.set(0x60, 4, 0x80808080, writable=0x8F8F8F8F)  # PIRQRC[A:D]
    bridge.set(0x82, 1, 0x00, writable=0x02)  # passive release
    return bridge
