# SPDX-License-Identifier: Apache-2.0
"""
Loaders
-------

From an image to a guest that is ready to start: :func:`load` detects the kind of image.
"""

from pathlib import Path
from typing import Final

from kvmsr.decompress import decompress
from kvmsr.errors import ImageError
from kvmsr.machine.loaders.bios import load_bios
from kvmsr.machine.loaders.boot import Boot
from kvmsr.machine.loaders.common import Guest, Loaded, read_file
from kvmsr.machine.loaders.elf import Elf
from kvmsr.machine.loaders.flat import load_flat
from kvmsr.machine.loaders.handover import hand_over
from kvmsr.machine.loaders.linux import load_bzimage
from kvmsr.machine.loaders.multiboot import find_header, load_multiboot
from kvmsr.machine.loaders.pvh import load_pvh, pvh_entry
from kvmsr.machine.loaders.setup import is_bzimage

__all__ = ("Boot", "Guest", "Loaded", "hand_over", "load")

_GZIP: Final = b"\x1f\x8b"


def load(guest: Guest, boot: Boot) -> Loaded:
    """
    Load what *boot* names into *guest*.

    :raises ImageError: if it cannot be loaded.
    :raises UsageError: if *boot* gives what this kind of image does not take.
    """
    if boot.bios is not None:
        return load_bios(guest, boot)
    assert boot.image is not None
    path = boot.image
    data = read_file(path, "image", guest.layout.low_size)
    if boot.mode is not None:
        return load_flat(guest, path, data, boot.mode)
    data = _expanded(path, data, guest.layout.low_size)
    if is_bzimage(data):
        return load_bzimage(guest, path, data, boot.append, boot.one_initrd())
    if find_header(data):
        return load_multiboot(guest, path, data, boot.append, boot.initrd)
    if data.startswith(b"\x7fELF"):
        return _load_elf(guest, boot, path, data)
    raise ImageError(
        f"image {path} is not a Linux bzImage, a multiboot kernel or an ELF kernel; if it is a flat"
        " binary, give the mode in which it starts: --mode 16, 32 or 64"
    )


def _expanded(path: Path, data: bytes, limit: int) -> bytes:
    """Return what is inside a compressed image, as Xen comes."""
    if not data.startswith(_GZIP):
        return data
    try:
        return decompress(data, limit)[1]
    except ImageError as error:
        raise ImageError(f"image {path}: {error}") from None


def _load_elf(guest: Guest, boot: Boot, path: Path, data: bytes) -> Loaded:
    elf = Elf(data, f"ELF image {path}")
    if pvh_entry(elf) is None:
        raise ImageError(
            f"ELF image {path} has neither a multiboot header nor a PVH entry, so there is no"
            " defined way to start it (for Linux, build with CONFIG_PVH, or give the bzImage)"
        )
    return load_pvh(guest, path, elf, boot.append, boot.one_initrd())
