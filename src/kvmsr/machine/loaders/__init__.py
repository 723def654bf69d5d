# SPDX-License-Identifier: Apache-2.0
"""
Loaders
-------

From an image to a guest that is ready to start: :func:`load` finds out what the image is.
"""

from pathlib import Path

from kvmsr.errors import ImageError, UsageError
from kvmsr.machine.loaders.bios import load_bios
from kvmsr.machine.loaders.boot import Boot
from kvmsr.machine.loaders.common import Guest, Loaded, read_file
from kvmsr.machine.loaders.elf import Elf
from kvmsr.machine.loaders.flat import load_flat
from kvmsr.machine.loaders.linux import is_bzimage, load_bzimage
from kvmsr.machine.loaders.multiboot import find_header, load_multiboot
from kvmsr.machine.loaders.pvh import load_pvh, pvh_entry

__all__ = ("Boot", "Guest", "Loaded", "load")


def load(guest: Guest, boot: Boot) -> Loaded:
    """
    Load what *boot* names into *guest*.

    :raises ImageError: if it cannot be loaded; says why.
    :raises UsageError: if the image takes less than *boot* gives.
    """
    if boot.bios is not None:
        return load_bios(guest, boot.bios)
    assert boot.image is not None
    path = boot.image
    data = read_file(path, "image", guest.layout.low_size)
    if boot.mode is not None:
        return load_flat(guest, path, data, boot.mode)
    if is_bzimage(data):
        return load_bzimage(guest, path, data, boot.append, _one(boot))
    if find_header(data):
        return load_multiboot(guest, path, data, boot.append, boot.initrd)
    if data.startswith(b"\x7fELF"):
        return _load_elf(guest, boot, path, data)
    raise ImageError(
        f"image {path} is no Linux bzImage, no multiboot kernel and no ELF kernel; if it is a flat"
        " binary, say in which mode it starts: --mode 16, 32 or 64"
    )


def _load_elf(guest: Guest, boot: Boot, path: Path, data: bytes) -> Loaded:
    elf = Elf(data, f"ELF image {path}")
    if pvh_entry(elf) is None:
        raise ImageError(
            f"ELF image {path} has neither a multiboot header nor a PVH entry: there is no agreed"
            " way to start it (Linux: build with CONFIG_PVH, or give the bzImage)"
        )
    return load_pvh(guest, path, elf, boot.append, _one(boot))


def _one(boot: Boot) -> Path | None:
    if len(boot.initrd) > 1:
        raise UsageError("only multiboot images take several --initrd")
    return boot.initrd[0] if boot.initrd else None
