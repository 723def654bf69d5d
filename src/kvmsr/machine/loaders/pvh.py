# SPDX-License-Identifier: Apache-2.0
"""
PVH
---

An ELF kernel with a Xen note that gives a 32-bit entry point, such as Linux's vmlinux. Source: Xen
docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h.
"""

import struct
from pathlib import Path
from typing import Final

from kvmsr.errors import ImageError
from kvmsr.machine.cpustate import Mode, Start
from kvmsr.machine.layout import COMMAND_LINE
from kvmsr.machine.loaders.common import Guest, Loaded, read_file
from kvmsr.machine.loaders.elf import Elf

__all__ = ("load_pvh", "pvh_entry")

_PHYS32_ENTRY: Final = 18  # XEN_ELFNOTE_PHYS32_ENTRY
_MAGIC: Final = 0x336EC578
_VERSION: Final = 1
_PAGE: Final = 4096
_TABLE: Final = 0x100  # offset from the start information
_MODULE: Final = 0x800


def pvh_entry(elf: Elf) -> int | None:
    """Return the entry point in the Xen note, or None if there is no such note."""
    note = elf.note("Xen", _PHYS32_ENTRY)
    if note is None or len(note) < 4:
        return None
    return int.from_bytes(note[:8].ljust(8, b"\0"), "little")


def load_pvh(guest: Guest, path: Path, elf: Elf, append: str, initrd: Path | None) -> Loaded:
    """Load an ELF kernel with a PVH entry."""
    entry = pvh_entry(elf)
    if entry is None:
        raise ImageError(f"ELF image {path} has no PVH entry")
    taken = elf.load(guest)
    address = guest.info_room(taken)
    line = append.encode() + b"\0"
    if len(line) > 0x10000:
        raise ImageError(f"the command line has {len(line) - 1:,} bytes, and the limit is 65,535")
    guest.put(COMMAND_LINE, line, "command line")
    if initrd is not None:
        data = read_file(initrd, "initrd", guest.layout.low_size)
        place = (guest.layout.low_size - len(data)) & -_PAGE
        if place < max(end for _, end in taken):
            raise ImageError(
                f"initrd {initrd} has {len(data):,} bytes and does not fit after the kernel; give"
                " the machine more --memory"
            )
        guest.put(place, data, f"initrd {initrd}")
        guest.put(
            address + _MODULE, struct.pack("<QQQQ", place, len(data), 0, 0), "PVH module list"
        )
    entries = guest.layout.e820()
    table = b"".join(struct.pack("<QQII", *entry, 0) for entry in entries)
    guest.put(address + _TABLE, table, "PVH memory map")
    info = struct.pack(
        "<IIIIQQQQII",
        _MAGIC,
        _VERSION,
        0,
        int(initrd is not None),
        address + _MODULE if initrd is not None else 0,
        COMMAND_LINE,
        guest.rsdp,
        address + _TABLE,
        len(entries),
        0,
    )
    guest.put(address, info, "PVH start information")
    return Loaded("ELF kernel by PVH", Start(Mode.PROTECTED, entry, {"rbx": address}, gdt=False))
