# SPDX-License-Identifier: Apache-2.0
"""
Memory layout
-------------

What is where in guest-physical memory::

    0x00000400  the BIOS data area, unless there is a BIOS image
    0x00001000  GDT and page tables, to start a vCPU in protected or long mode
    0x00007c00  flat 16-bit images
    0x00010000  Linux's boot_params; the command line is at 0x20000
    0x0008bc00  multiboot or PVH information, unless the image itself is there
    0x0009fc00  end of conventional memory: the extended BIOS data area
    0x000e0000  ACPI tables, or the last 128 KiB of a BIOS image
    0x000ff000  SMBIOS, unless there is a BIOS image
    0x00100000  RAM, up to 3 GiB
    0xfec00000  IOAPIC and local APICs, by KVM
    0xfeffc000  four pages that KVM needs on some Intel hosts
    0xff000000  test device
    ...         a BIOS image, which ends at 4 GiB
    0x100000000 the rest of RAM
"""

from dataclasses import dataclass
from typing import Final

from kvmsr.errors import GuestMemoryError

__all__ = (
    "ACPI_BASE",
    "BDA",
    "BOOT_PARAMS",
    "COMMAND_LINE",
    "EBDA",
    "FLAT_16",
    "FLAT_32",
    "FOUR_GIB",
    "IDENTITY_MAP",
    "INFO",
    "INFO_SIZE",
    "LOW_LIMIT",
    "PAGE_TABLES",
    "SMBIOS",
    "STACK",
    "TSS_PAGES",
    "Layout",
)

BDA: Final = 0x400
GDT: Final = 0x1000
PAGE_TABLES: Final = 0x2000  # to 0x8000
FLAT_16: Final = 0x7C00
INFO: Final = 0x8BC00
INFO_SIZE: Final = 0x14000  # up to the EBDA; a command line may have 64 KiB
BOOT_PARAMS: Final = 0x10000
COMMAND_LINE: Final = 0x20000
STACK: Final = 0x80000
EBDA: Final = 0x9FC00
ACPI_BASE: Final = 0xE0000
SMBIOS: Final = 0xFF000
FLAT_32: Final = 0x100000
LOW_LIMIT: Final = 0xC0000000
IDENTITY_MAP: Final = 0xFEFFC000
TSS_PAGES: Final = 0xFEFFD000
FOUR_GIB: Final = 1 << 32

_PAGE: Final = 4096
_LEAST: Final = 2 << 20
_MOST: Final = 1 << 40  # beyond the physical address bits of many 64-bit CPUs

_RAM, _RESERVED = 1, 2


@dataclass(frozen=True, slots=True)
class Layout:
    """
    Where RAM is.

    :ivar low_size: bytes of RAM from address 0.
    :ivar high_size: bytes of RAM from 4 GiB.
    """

    low_size: int
    high_size: int

    @classmethod
    def of(cls, memory: int) -> "Layout":
        """
        Return the layout for *memory* bytes of RAM.

        :raises GuestMemoryError: unless that is 2 MiB to 1 TiB, in whole 4 KiB pages.
        """
        if not _LEAST <= memory <= _MOST or memory % _PAGE:
            raise GuestMemoryError(
                f"a machine cannot have {memory:,} bytes of memory: give it 2 MiB to 1 TiB, in"
                " whole 4 KiB pages"
            )
        low = min(memory, LOW_LIMIT)
        return cls(low, memory - low)

    @property
    def size(self) -> int:
        """Return the number of bytes of RAM."""
        return self.low_size + self.high_size

    def e820(self) -> list[tuple[int, int, int]]:
        """Return the memory map: start, size and type (1 RAM, 2 reserved), in ascending order."""
        entries = [
            (0, EBDA, _RAM),
            (EBDA, 0xA0000 - EBDA, _RESERVED),
            (ACPI_BASE, 0x100000 - ACPI_BASE, _RESERVED),
            (0x100000, self.low_size - 0x100000, _RAM),
            (IDENTITY_MAP, 4 * _PAGE, _RESERVED),
        ]
        if self.high_size:
            entries.append((FOUR_GIB, self.high_size, _RAM))
        return entries
