# SPDX-License-Identifier: Apache-2.0
"""
ACPI tables for firmware
------------------------

The tables as files of fw_cfg, and a script by which firmware places them: what to allocate, where
pointers and checksums are. Source: QEMU hw/acpi/bios-linker-loader.c, which says what the entries
mean.
"""

import struct
from collections.abc import Callable
from typing import Final

from kvmsr.machine.acpi import ALIGNMENT, CHECKSUM, About, Tables, rsdp
from kvmsr.machine.board.fwcfg import FwCfg

__all__ = ("add_tables",)

_TABLES: Final = "etc/acpi/tables"
_RSDP: Final = "etc/acpi/rsdp"
_SCRIPT: Final = "etc/table-loader"

_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_HIGH, _F_SEGMENT = 1, 2
_ENTRY_SIZE: Final = 128


def add_tables(fwcfg: FwCfg, about: Callable[[], About]) -> None:
    """
    Add the files.

    :param about: returns what the tables are about; called when firmware reads them, which is after
        it has put the power management's ports somewhere.
    """
    tables = Tables(0, about())
    root = bytearray(rsdp(tables.xsdt))
    root[8] = root[32] = 0
    fwcfg.add_file(_TABLES, lambda: _unsummed(Tables(0, about())))
    fwcfg.add_file(_RSDP, bytes(root))
    entries = [_allocate(_TABLES, ALIGNMENT, _HIGH), _allocate(_RSDP, 16, _F_SEGMENT)]
    entries += [_add_pointer(_TABLES, at, size) for at, size in tables.pointers]
    entries += [_add_checksum(_TABLES, at + CHECKSUM, at, size) for at, size in tables.summed]
    entries.append(_add_pointer(_RSDP, 24, 8))
    entries += [_add_checksum(_RSDP, 8, 0, 20), _add_checksum(_RSDP, 32, 0, len(root))]
    fwcfg.add_file(_SCRIPT, b"".join(entry.ljust(_ENTRY_SIZE, b"\0") for entry in entries))


def _unsummed(tables: Tables) -> bytes:
    """Return the tables with their checksums 0: OVMF adds them to the sum that it takes."""
    image = tables.image
    for at, _ in tables.summed:
        image[at + CHECKSUM] = 0
    return bytes(image)


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return struct.pack("<I56sIB", _ALLOCATE, file.encode(), alignment, zone)


def _add_pointer(file: str, offset: int, size: int) -> bytes:
    """Have the address of the tables added to *size* bytes at *offset* of *file*."""
    names = file.encode(), _TABLES.encode()
    return struct.pack("<I56s56sIB", _ADD_POINTER, *names, offset, size)


def _add_checksum(file: str, offset: int, start: int, size: int) -> bytes:
    """Have the byte at *offset* of *file* make the sum of *size* bytes from *start* zero."""
    return struct.pack("<I56sIII", _ADD_CHECKSUM, file.encode(), offset, start, size)
