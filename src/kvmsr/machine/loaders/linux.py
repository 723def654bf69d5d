# SPDX-License-Identifier: Apache-2.0
"""
Linux bzImages
--------------

Loaded by the 64-bit or the 32-bit boot protocol. A compressed kernel inside is decompressed here
rather than by the guest, which on a slow CPU would take most of the boot. Source: Linux
Documentation/arch/x86/boot.rst and zero-page.rst.
"""

import struct
from pathlib import Path
from typing import Final

from kvmsr.decompress import UnknownFormatError, decompress
from kvmsr.errors import ImageError
from kvmsr.machine.cpustate import Mode, Start
from kvmsr.machine.layout import BOOT_PARAMS, COMMAND_LINE, STACK
from kvmsr.machine.loaders.common import Guest, Loaded, read_file
from kvmsr.machine.loaders.elf import Elf
from kvmsr.machine.loaders.setup import Header

__all__ = ("load_bzimage",)

_ENTRY_64: Final = 0x200
_E820_MAX: Final = 128
_PAGE: Final = 4096


def load_bzimage(guest: Guest, path: Path, data: bytes, append: str, initrd: Path | None) -> Loaded:
    """Load a bzImage with its command line and initial RAM disk."""
    what = f"bzImage {path}"
    header = Header(data, what)
    if header.real_mode_only:
        raise ImageError(
            f"{what} starts in real mode and needs a BIOS: give SeaBIOS with --bios, and with"
            " --option-rom what loads the image there, QEMU's linuxboot_dma.bin"
        )
    kernel = data[header.setup_size :]
    if len(kernel) <= _ENTRY_64:
        raise ImageError(f"{what}: truncated within its setup code")
    guest.room(header.load_address, header.end - header.load_address, f"{what}, while it starts,")
    mode, entry, kind, notes = _load_kernel(guest, header, kernel, what)
    params = _boot_params(guest, header, append, initrd)
    guest.put(BOOT_PARAMS, bytes(params), "boot_params")
    registers = {"rsi": BOOT_PARAMS, "rsp": STACK}
    return Loaded(kind, Start(mode, entry, registers), notes)


def _load_kernel(
    guest: Guest, header: Header, kernel: bytes, what: str
) -> tuple[Mode, int, str, tuple[str, ...]]:
    """Load the kernel inside, or the image as it is; return mode, entry, kind and notes."""
    notes: tuple[str, ...] = ()
    offset, length = header.payload
    if length:
        payload = kernel[offset : offset + length]
        if len(payload) < length:
            raise ImageError(f"{what}: truncated: its compressed kernel is incomplete")
        try:
            name, vmlinux = decompress(payload, guest.layout.low_size)
            elf = Elf(vmlinux, f"{what}: the kernel inside")
            elf.load(guest)
            return Mode(elf.bits), elf.entry, f"Linux bzImage, {name}", ()
        except UnknownFormatError as error:
            how = "the guest decompresses the kernel itself, which takes longer"
            notes = (f"{what}: {error}; {how}",)
        except ImageError as error:
            raise ImageError(str(error) if what in str(error) else f"{what}: {error}") from None
    guest.put(header.load_address, kernel, what)
    if header.has_64_bit_entry:
        return Mode.LONG, header.load_address + _ENTRY_64, "Linux bzImage", notes
    return Mode.PROTECTED, header.load_address, "Linux bzImage, 32-bit", notes


def _boot_params(guest: Guest, header: Header, append: str, initrd: Path | None) -> bytearray:
    """Return boot_params; the command line and the initial RAM disk are loaded."""
    guest.put(COMMAND_LINE, header.command_line(append), "command line")
    place = (0, 0)
    if initrd is not None:
        data = read_file(initrd, "initrd", guest.layout.low_size)
        place = header.place_initrd(initrd, len(data), guest.layout.low_size), len(data)
        guest.put(place[0], data, f"initrd {initrd}")
    params = bytearray(_PAGE)
    header.fill(params, COMMAND_LINE, place)
    struct.pack_into("<I", params, 0x214, header.load_address)
    struct.pack_into("<Q", params, 0x70, guest.rsdp)
    entries = guest.layout.e820()[:_E820_MAX]
    params[0x1E8] = len(entries)
    for number, entry in enumerate(entries):
        struct.pack_into("<QQI", params, 0x2D0 + 20 * number, *entry)
    return params
