# SPDX-License-Identifier: Apache-2.0
"""
Multiboot
---------

Version 1: an ELF file (32 or 64 bits), or an image whose header gives its load address, started in
32-bit protected mode. Source: Multiboot Specification 0.6.96.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kvmsr.errors import ImageError
from kvmsr.machine.cpustate import Mode, Start
from kvmsr.machine.layout import INFO_SIZE, Layout
from kvmsr.machine.loaders.common import Guest, Loaded, read_file
from kvmsr.machine.loaders.elf import Elf

__all__ = ("find_header", "load_multiboot")

_MAGIC: Final = 0x1BADB002
_LOADER_MAGIC: Final = 0x2BADB002
_SEARCHED: Final = 8192
_ADDRESSES_VALID: Final = 1 << 16
_UNSUPPORTED: Final = 0xFFFC  # the bits that a loader must understand, except 0 and 1

# Flags for the valid fields of the information structure.
_MEMORY, _COMMAND_LINE, _MODULES, _MEMORY_MAP, _LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_INFO_SIZE: Final = 120
_PAGE: Final = 4096
_LEAST_MODULE: Final = 0x200000


class Header(NamedTuple):
    """A multiboot header: its *offset* in the file, *flags*, and the addresses if it has any."""

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


def find_header(data: bytes) -> Header | None:
    """Return the multiboot header of an image, or None."""
    for offset in range(0, min(len(data), _SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == _MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            addresses = None
            if flags & _ADDRESSES_VALID and offset + 32 <= len(data):
                addresses = struct.unpack_from("<5I", data, offset + 12)
            return Header(offset, flags, addresses)
    return None


def load_multiboot(
    guest: Guest, path: Path, data: bytes, append: str, modules: Sequence[Path]
) -> Loaded:
    """Load a multiboot image with its command line and modules."""
    what = f"multiboot image {path}"
    header = find_header(data)
    if header is None:
        raise ImageError(f"{what} has no multiboot header")
    if header.flags & _UNSUPPORTED:
        raise ImageError(
            f"{what} requires features {header.flags & _UNSUPPORTED:#x} unknown to multiboot 1"
        )
    if header.addresses is not None:
        entry, taken, kind = *_load_by_header(guest, data, header, what), "a.out"
    else:
        elf = Elf(data, what)
        entry, taken, kind = elf.entry, elf.load(guest), f"ELF{elf.bits}"
    info = _Info(guest, guest.info_room(taken))
    info.command_line(f"{path} {append}".rstrip())
    info.modules(modules, max(end for _, end in taken))
    info.memory(guest.layout)
    info.write()
    registers = {"rax": _LOADER_MAGIC, "rbx": info.address}
    return Loaded(f"multiboot, {kind}", Start(Mode.PROTECTED, entry, registers, gdt=False))


def _load_by_header(
    guest: Guest, data: bytes, header: Header, what: str
) -> tuple[int, list[tuple[int, int]]]:
    assert header.addresses is not None
    header_addr, load_addr, load_end, bss_end, entry = header.addresses
    first = header.offset - (header_addr - load_addr)
    if header_addr < load_addr or first < 0:
        raise ImageError(f"{what}: its header starts before the beginning of the file")
    last = first + load_end - load_addr if load_end else len(data)
    if load_end and (load_end < load_addr or last > len(data)):
        raise ImageError(f"{what}: truncated: its header loads more than the file has")
    text = data[first:last]
    guest.put(load_addr, text, what)
    end = load_addr + len(text)
    if bss_end > end:
        guest.room(end, bss_end - end, what)[:] = bytes(bss_end - end)
    return entry, [(load_addr, max(end, bss_end))]


class _Info:
    """The multiboot information structure, followed by what it points to."""

    def __init__(self, guest: Guest, address: int) -> None:
        self._guest = guest
        self.address = address
        self._info = bytearray(_INFO_SIZE)
        self._next = address + _INFO_SIZE
        self._flags = 0
        self._set(_LOADER_NAME, 64, self._string("kvmsr"))

    def _set(self, flag: int, offset: int, *values: int) -> None:
        self._flags |= flag
        struct.pack_into(f"<{len(values)}I", self._info, offset, *values)

    def _place(self, data: bytes) -> int:
        address = self._next
        self._guest.put(address, data, "multiboot information")
        self._next = (address + len(data) + 7) & ~7
        return address

    def _string(self, text: str) -> int:
        return self._place(text.encode() + b"\0")

    def command_line(self, text: str) -> None:
        if len(text) > 4096:
            raise ImageError(
                f"the command line has {len(text):,} characters, and the limit is 4,096"
            )
        self._set(_COMMAND_LINE, 16, self._string(text))

    def modules(self, files: Sequence[Path], behind: int) -> None:
        entries = b""
        address = max(behind, self.address + INFO_SIZE, _LEAST_MODULE)
        for file in files:
            data = read_file(file, "module", self._guest.layout.low_size)
            address = (address + _PAGE - 1) & -_PAGE
            self._guest.put(address, data, f"module {file}")
            entries += struct.pack("<4I", address, address + len(data), self._string(str(file)), 0)
            address += len(data)
        if files:
            self._set(_MODULES, 20, len(files), self._place(entries))

    def memory(self, layout: Layout) -> None:
        entries = b"".join(struct.pack("<IQQI", 20, *entry) for entry in layout.e820())
        self._set(_MEMORY_MAP, 44, len(entries), self._place(entries))
        self._set(_MEMORY, 4, 639, (layout.low_size - (1 << 20)) >> 10)

    def write(self) -> None:
        struct.pack_into("<I", self._info, 0, self._flags)
        self._guest.put(self.address, bytes(self._info), "multiboot information")
