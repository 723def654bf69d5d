# SPDX-License-Identifier: Apache-2.0
"""
Memory layout
-------------

Where things lie in guest-physical memory::

    0x00001000  GDT, page tables: what loaders need to start a vCPU in protected or long mode
    0x00007c00  flat 16-bit images
    0x00010000  Linux' boot_params; its command line follows at 0x20000
    0x0008bc00  multiboot's or PVH's information, unless the image itself lies there
    0x0009fc00  end of conventional memory
    0x000e0000  ACPI tables, or the last 128 KiB of a BIOS image
    0x00100000  RAM, up to 3 GiB
    0xfec00000  IOAPIC, local APICs: KVM's
    0xfeffc000  four pages that KVM needs on some Intel hosts
    0xff000000  test device
    ...         a BIOS image ends at 4 GiB
    0x100000000 the rest of RAM
"""

from dataclasses import dataclass
from typing import Final

from kvmsr.errors import GuestMemoryError

__all__ = (
    "ACPI_BASE",
    "BOOT_PARAMS",
    "COMMAND_LINE",
    "FLAT_16",
    "FLAT_32",
    "FOUR_GIB",
    "IDENTITY_MAP",
    "INFO",
    "INFO_SIZE",
    "LOW_LIMIT",
    "PAGE_TABLES",
    "STACK",
    "TSS_PAGES",
    "Layout",
)

GDT: Final = 0x1000
PAGE_TABLES: Final = 0x2000  # to 0x8000
FLAT_16: Final = 0x7C00
INFO: Final = 0x8BC00
INFO_SIZE: Final = 0x14000  # to the EBDA; a command line may take 64 KiB
BOOT_PARAMS: Final = 0x10000
COMMAND_LINE: Final = 0x20000
STACK: Final = 0x80000
EBDA: Final = 0x9FC00
ACPI_BASE: Final = 0xE0000
FLAT_32: Final = 0x100000
LOW_LIMIT: Final = 0xC0000000
IDENTITY_MAP: Final = 0xFEFFC000
TSS_PAGES: Final = 0xFEFFD000
FOUR_GIB: Final = 1 << 32

_PAGE: Final = 4096
_LEAST: Final = 2 << 20
_MOST: Final = 1 << 40  # the fewest physical address bits that 64-bit CPUs have had is 36 to 40

_RAM, _RESERVED = 1, 2


@dataclass(frozen=True, slots=True)
class Layout:
    """
    How much RAM lies where.

    :ivar low_size: bytes from 0 up.
    :ivar high_size: bytes from 4 GiB up.
    """

    low_size: int
    high_size: int

    @classmethod
    def of(cls, memory: int) -> "Layout":
        """
        Return the layout of *memory* bytes of RAM.

        :raises GuestMemoryError: if that is not a sensible amount.
        """
        if not _LEAST <= memory <= _MOST or memory % _PAGE:
            raise GuestMemoryError(
                f"a machine with {memory:,} bytes of memory cannot be built: it needs 2 MiB to"
                " 1 TiB, in whole 4 KiB pages"
            )
        low = min(memory, LOW_LIMIT)
        return cls(low, memory - low)

    def e820(self) -> list[tuple[int, int, int]]:
        """Return start, size and type (1 RAM, 2 reserved) of what there is, ascending."""
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
