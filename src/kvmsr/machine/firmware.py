# SPDX-License-Identifier: Apache-2.0
"""
In place of firmware
--------------------

What firmware tells an operating system about the machine. A kernel that is started without any
finds it in memory; a firmware image is told by fw_cfg, and tells in its own words.
"""

from typing import Final

from kvmsr.kvm import CpuidTable, Vm
from kvmsr.machine import acpi, smbios
from kvmsr.machine.board.fwcfg import FwCfg
from kvmsr.machine.layout import ACPI_BASE, SMBIOS, Layout

__all__ = ("stand_in", "tell")

_POINT_SIZE: Final = 32  # SMBIOS' entry point has 24 bytes, and is aligned to 16


def stand_in(vm: Vm, layout: Layout, cpus: int, cpuid: CpuidTable) -> int:
    """
    Put into memory what firmware leaves there, and return the address of the RSDP.

    :param cpuid: CPUID of the first vCPU.
    """
    tables = acpi.build_tables(ACPI_BASE, cpus)
    vm.memory_at(ACPI_BASE, len(tables))[:] = tables
    structures = smbios.build_structures(layout.size, cpus, cpuid, firmware=True)
    point = smbios.entry_point(SMBIOS + _POINT_SIZE, structures)
    described = point.ljust(_POINT_SIZE, b"\0") + structures
    vm.memory_at(SMBIOS, len(described))[:] = described
    return ACPI_BASE


def tell(fwcfg: FwCfg, layout: Layout, cpus: int, cpuid: CpuidTable) -> None:
    """Give a firmware image what it cannot find out by itself."""
    structures = smbios.build_structures(layout.size, cpus, cpuid, firmware=False)
    fwcfg.add_file("etc/smbios/smbios-anchor", smbios.entry_point(0, structures))
    fwcfg.add_file("etc/smbios/smbios-tables", structures)
