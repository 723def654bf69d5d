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

__all__ = ("is_bzimage", "load_bzimage")

_MAGIC: Final = b"HdrS"
_LEAST_VERSION: Final = 0x0202  # has a pointer to the command line
_XLF_KERNEL_64: Final = 1
_ENTRY_64: Final = 0x200
_LOADED_HIGH: Final = 1
_HIGH: Final = 0x100000  # where a kernel that is not relocatable is loaded
_UNKNOWN_LOADER: Final = 0xFF
_E820_MAX: Final = 128
_PAGE: Final = 4096


class _Header:
    """The setup header; fields that its version lacks have the values that boot.rst gives."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) < 0x270:
            raise ImageError(f"{what}: truncated within its setup header")
        self.setup_size = ((data[0x1F1] or 4) + 1) * 512
        (self.version,) = struct.unpack_from("<H", data, 0x206)

        def since(version: int, form: str, offset: int, otherwise: int) -> int:
            has_it = self.version >= version
            return int(struct.unpack_from(f"<{form}", data, offset)[0]) if has_it else otherwise

        self.loaded_high = data[0x211] & _LOADED_HIGH
        self.code32_start = since(0x0200, "I", 0x214, 0)
        self.initrd_max = since(0x0203, "I", 0x22C, 0x37FFFFFF)
        self.command_line_size = since(0x0206, "I", 0x238, 255)
        self.payload_offset = since(0x0208, "I", 0x248, 0)
        self.payload_length = since(0x0208, "I", 0x24C, 0)
        preferred = since(0x020A, "Q", 0x258, _HIGH)
        self.load_address = preferred if since(0x0205, "B", 0x234, 0) else _HIGH
        self.end = preferred + since(0x020A, "I", 0x260, max(len(data) - self.setup_size, 0))
        self.has_64_bit_entry = since(0x020C, "H", 0x236, 0) & _XLF_KERNEL_64
        self.bytes = data[0x1F1 : 0x202 + data[0x201]]


def is_bzimage(data: bytes) -> bool:
    """Return whether an image has Linux's setup header."""
    return data[0x202:0x206] == _MAGIC and data[0x1FE:0x200] == b"\x55\xaa"


def load_bzimage(guest: Guest, path: Path, data: bytes, append: str, initrd: Path | None) -> Loaded:
    """Load a bzImage with its command line and initial RAM disk."""
    what = f"bzImage {path}"
    header = _Header(data, what)
    if header.version < _LEAST_VERSION or not header.loaded_high or not header.code32_start:
        raise ImageError(
            f"{what}: no entry point but for real mode (boot protocol"
            f" {header.version >> 8}.{header.version & 0xFF:02}), for which it needs a BIOS"
        )
    kernel = data[header.setup_size :]
    if len(kernel) <= _ENTRY_64:
        raise ImageError(f"{what}: truncated within its setup code")
    guest.room(header.load_address, header.end - header.load_address, f"{what}, while it starts,")
    mode, entry, kind, notes = _load_kernel(guest, header, kernel, what)
    params = _boot_params(guest, header, append, what)
    if initrd is not None:
        _load_initrd(guest, header, params, initrd)
    guest.put(BOOT_PARAMS, bytes(params), "boot_params")
    registers = {"rsi": BOOT_PARAMS, "rsp": STACK}
    return Loaded(kind, Start(mode, entry, registers), notes)


def _load_kernel(
    guest: Guest, header: _Header, kernel: bytes, what: str
) -> tuple[Mode, int, str, tuple[str, ...]]:
    """Load the kernel inside, or the image as it is; return mode, entry, kind and notes."""
    notes: tuple[str, ...] = ()
    if header.payload_length:
        payload = kernel[header.payload_offset : header.payload_offset + header.payload_length]
        if len(payload) < header.payload_length:
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


def _boot_params(guest: Guest, header: _Header, append: str, what: str) -> bytearray:
    params = bytearray(_PAGE)
    params[0x1F1 : 0x1F1 + len(header.bytes)] = header.bytes
    line = append.encode()
    if len(line) > header.command_line_size:
        raise ImageError(
            f"{what}: the command line has {len(line):,} bytes, and this kernel takes"
            f" {header.command_line_size:,}"
        )
    guest.put(COMMAND_LINE, line + b"\0", "command line")
    params[0x210] = _UNKNOWN_LOADER
    params[0x211] |= _LOADED_HIGH
    struct.pack_into("<I", params, 0x214, header.load_address)
    struct.pack_into("<I", params, 0x228, COMMAND_LINE)
    struct.pack_into("<Q", params, 0x70, guest.rsdp)
    entries = guest.layout.e820()[:_E820_MAX]
    params[0x1E8] = len(entries)
    for number, entry in enumerate(entries):
        struct.pack_into("<QQI", params, 0x2D0 + 20 * number, *entry)
    return params


def _load_initrd(guest: Guest, header: _Header, params: bytearray, path: Path) -> None:
    data = read_file(path, "initrd", guest.layout.low_size)
    top = min(header.initrd_max + 1, guest.layout.low_size)
    address = (top - len(data)) & -_PAGE
    if address < header.end:
        raise ImageError(
            f"initrd {path} has {len(data):,} bytes and does not fit between the kernel and"
            f" {top:#x}; give the machine more --memory"
        )
    guest.put(address, data, f"initrd {path}")
    struct.pack_into("<II", params, 0x218, address, len(data))
