# SPDX-License-Identifier: Apache-2.0
"""
In place of firmware
--------------------

What firmware does before it starts an operating system, and what it tells it about the machine. A
kernel that is started without any finds all that done. A firmware image is told by fw_cfg, and does
and tells in its own way.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

from kvmsr.kvm import Vcpu, Vm
from kvmsr.machine import acpi, smbios
from kvmsr.machine.board import COM1, Board
from kvmsr.machine.cpuid import has
from kvmsr.machine.cpustate import enable_mtrrs
from kvmsr.machine.layout import ACPI_BASE, BDA, EBDA, SMBIOS, Layout
from kvmsr.machine.loaders import Boot, hand_over
from kvmsr.machine.tableloader import add_tables
from kvmsr.msr import features
from kvmsr.policy import Model, Policy

__all__ = ("stand_in", "tell")

_PSTATE0: Final = 0xC0010064  # MSR_AMD_PSTATE_DEF0
_MOST_DESCRIBED: Final = 1024  # vCPUs whose devices fit below SMBIOS
_POINT_SIZE: Final = 32  # SMBIOS' entry point has 24 bytes, and is aligned to 16


def stand_in(vm: Vm, vcpus: Sequence[Vcpu], layout: Layout, board: Board, policy: Policy) -> int:
    """Do what firmware does, and return the address of the RSDP."""
    board.set_up()
    enable_mtrrs(vcpus)
    _write_data_areas(vm)
    about = acpi.About(len(vcpus), layout.low_size, mhz=_p_states(vcpus, policy))
    tables = acpi.build_tables(ACPI_BASE, about)
    vm.memory_at(ACPI_BASE, len(tables))[:] = tables
    structures = _structures(vcpus, layout, firmware=True)
    point = smbios.entry_point(SMBIOS + _POINT_SIZE, structures)
    described = point.ljust(_POINT_SIZE, b"\0") + structures
    vm.memory_at(SMBIOS, len(described))[:] = described
    return ACPI_BASE


def _write_data_areas(vm: Vm) -> None:
    """
    Write the BIOS data area, and the size of the extended one, as far as this machine has what they
    are about. Source: IBM PS/2 and PC BIOS Interface Technical Reference, section 3.
    """
    equipment = 1 << 9 | 1 << 1  # one serial port, and an FPU
    area = vm.memory_at(BDA, 0x100)
    struct.pack_into("<H", area, 0x00, COM1)
    struct.pack_into("<H", area, 0x0E, EBDA >> 4)
    struct.pack_into("<H", area, 0x10, equipment)
    struct.pack_into("<H", area, 0x13, EBDA >> 10)  # KiB of conventional memory
    vm.memory_at(EBDA, 1)[0] = (0xA0000 - EBDA) >> 10  # KiB


def tell(vcpus: Sequence[Vcpu], layout: Layout, board: Board, boot: Boot, policy: Policy) -> None:
    """
    Give a firmware image what it cannot find out by itself, and what it is to start.

    :raises ImageError: if it cannot be given that.
    """
    hand_over(board.fwcfg, layout, boot)
    ports = board.power_management
    mhz = _p_states(vcpus, policy)
    add_tables(board.fwcfg, lambda: acpi.About(len(vcpus), layout.low_size, ports.ports, mhz))
    if boot.option_rom is not None:
        # There is no screen: SeaBIOS shows on the serial line what programs write to it. Without
        # that, it shows its own words on the debug console only.
        board.fwcfg.add_file("etc/sercon-port", struct.pack("<H", COM1))
        board.fwcfg.add_file("etc/screen-and-debug", struct.pack("<I", 0))
    structures = _structures(vcpus, layout, firmware=False)
    board.fwcfg.add_file("etc/smbios/smbios-anchor", smbios.entry_point(0, structures))
    board.fwcfg.add_file("etc/smbios/smbios-tables", structures)


def _p_states(vcpus: Sequence[Vcpu], policy: Policy) -> Sequence[int]:
    """Return the frequencies in MHz of the P-states that the policy gives an AMD CPU, if any."""
    if not has(vcpus[0].get_cpuid2(), features()["hw_pstate"]) or len(vcpus) > _MOST_DESCRIBED:
        return ()
    rules = (rule for rule in policy.rules if any(a <= _PSTATE0 <= b for a, b in rule.msrs))
    answer = next((rule.read for rule in rules if rule.read is not None), None)
    if not isinstance(answer, Model) or answer.name != "amd.pstates":
        return ()
    given: Any = answer.parameters
    mhz: tuple[int, ...] = given.mhz
    return mhz


def _structures(vcpus: Sequence[Vcpu], layout: Layout, *, firmware: bool) -> bytes:
    cpuid = vcpus[0].get_cpuid2()
    return smbios.build_structures(layout.size, len(vcpus), cpuid, firmware=firmware)
