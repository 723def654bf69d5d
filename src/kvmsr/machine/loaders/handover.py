# SPDX-License-Identifier: Apache-2.0
"""
Handing over to firmware
------------------------

An image with Linux's setup header that firmware is to start, with its command line and initial RAM
disk, as items of fw_cfg. OVMF takes them by itself; SeaBIOS starts an option ROM that loads them as
the real-mode boot protocol says. Sources: QEMU include/standard-headers/linux/qemu_fw_cfg.h and
docs/specs/fw_cfg.rst; Linux Documentation/arch/x86/boot.rst.
"""

import struct
from pathlib import Path
from typing import Final

from kvmsr.errors import ImageError
from kvmsr.machine.board.fwcfg import FwCfg
from kvmsr.machine.layout import Layout
from kvmsr.machine.loaders.boot import Boot
from kvmsr.machine.loaders.common import read_file
from kvmsr.machine.loaders.setup import Header, is_bzimage

__all__ = ("hand_over",)

_KERNEL: Final = (0x07, 0x08, 0x11)
_INITRD: Final = (0x0A, 0x0B, 0x12)
_COMMAND_LINE: Final = (0x13, 0x14, 0x15)
_SETUP: Final = (0x16, 0x17, 0x18)
"""The keys of an item's address, its size and its data."""

_HIGH: Final = (0x10000, 0x20000, 0x100000)
_LOW: Final = (0x90000, 0x98000, 0x10000)
"""Where setup, command line and kernel go, if the kernel is to be above 1 MiB, and if not."""

_TABLES: Final = 1 << 20  # at the end of RAM, for what firmware keeps there
_LARGEST_ROM: Final = 128 << 10
_CAN_USE_HEAP: Final = 1 << 7


def hand_over(fwcfg: FwCfg, layout: Layout, boot: Boot) -> None:
    """
    Give firmware the image and the option ROM that *boot* names, if any.

    :raises ImageError: if firmware cannot take the image.
    """
    if boot.option_rom is not None:
        name = f"genroms/{boot.option_rom.name}"[:55]
        fwcfg.add_file(name, read_file(boot.option_rom, "option ROM", _LARGEST_ROM))
        if boot.image is not None:
            fwcfg.add_file("bootorder", f"/rom@{name}\n".encode() + b"\0")
    if boot.image is not None:
        data = read_file(boot.image, "image", layout.low_size)
        if not is_bzimage(data):
            raise ImageError(
                f"image {boot.image} does not have Linux's setup header, and firmware is handed no"
                " others; leave --bios out"
            )
        _hand_over_linux(fwcfg, layout, boot, boot.image, data)


def _hand_over_linux(fwcfg: FwCfg, layout: Layout, boot: Boot, path: Path, data: bytes) -> None:
    header = Header(data, f"image {path}")
    setup_at, line_at, kernel_at = _HIGH if header.loaded_high else _LOW
    place = (0, 0)
    disk = boot.one_initrd()
    if disk is not None:
        initrd = read_file(disk, "initrd", layout.low_size)
        place = header.place_initrd(disk, len(initrd), layout.low_size - _TABLES), len(initrd)
        _add(fwcfg, _INITRD, place[0], initrd)
    setup = bytearray(data[: header.setup_size])
    header.fill(setup, line_at, place)
    setup[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<H", setup, 0x224, line_at - setup_at - 0x200)  # the end of the heap
    _add(fwcfg, _KERNEL, kernel_at, data[header.setup_size :])
    _add(fwcfg, _COMMAND_LINE, line_at, header.command_line(boot.append))
    _add(fwcfg, _SETUP, setup_at, bytes(setup))


def _add(fwcfg: FwCfg, keys: tuple[int, int, int], address: int, data: bytes) -> None:
    for key, value in zip(keys, (address, len(data)), strict=False):
        fwcfg.add_item(key, struct.pack("<I", value))
    fwcfg.add_item(keys[2], data)
