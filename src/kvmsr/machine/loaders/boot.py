# SPDX-License-Identifier: Apache-2.0
"""
What to boot
------------

What a user asks a machine to boot, checked when it is given.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvmsr.errors import UsageError
from kvmsr.machine.arguments import StrPath, refuse_unless, to_path

__all__ = ("Boot",)

_MODES: Final = (16, 32, 64)


@dataclass(frozen=True, slots=True, init=False)
class Boot:
    """
    What a machine boots: ``Boot("vmlinuz", "console=ttyS0")``, ``Boot(bios="bios.bin")``.

    :param image: a kernel or a flat binary. If there is *bios*, too, an image with Linux's setup
        header, for the firmware to start.
    :param append: the kernel's command line.
    :param initrd: an initial RAM disk. Multiboot images take several: their modules.
    :param bios: a firmware image.
    :param mode: 16, 32 or 64 if *image* is a flat binary, to be started in that mode.
    :param option_rom: an option ROM for the firmware; if there is an *image*, it is what is booted.
    :raises UsageError: if an argument is not of its kind, or they do not go together.
    """

    image: Path | None
    append: str
    initrd: tuple[Path, ...]
    bios: Path | None
    mode: int | None
    option_rom: Path | None

    def __init__(
        self,
        image: StrPath | None = None,
        append: str = "",
        initrd: StrPath | Iterable[StrPath] = (),
        bios: StrPath | None = None,
        mode: int | None = None,
        option_rom: StrPath | None = None,
    ) -> None:
        if image is None and bios is None:
            raise UsageError("there is nothing to boot: give an image, or firmware with --bios")
        if bios is None and option_rom is not None:
            raise UsageError("an option ROM is for firmware: give that with --bios")
        if bios is not None and mode is not None:
            raise UsageError("firmware starts no flat binaries: leave --mode or --bios out")
        refuse_unless(isinstance(append, str), "append", append, "give a str")
        valid = mode is None or (type(mode) is int and mode in _MODES)
        refuse_unless(valid, "mode", mode, "give 16, 32 or 64 for a flat binary, or None")
        put = object.__setattr__
        put(self, "image", None if image is None else to_path(image, "image"))
        put(self, "append", append)
        put(self, "initrd", _paths(initrd))
        put(self, "bios", None if bios is None else to_path(bios, "bios"))
        put(self, "mode", mode)
        put(self, "option_rom", None if option_rom is None else to_path(option_rom, "option_rom"))

    def one_initrd(self) -> Path | None:
        """Return the initial RAM disk, if there is one; :class:`UsageError` if there are more."""
        if len(self.initrd) > 1:
            raise UsageError("only multiboot images take more than one --initrd")
        return self.initrd[0] if self.initrd else None


def _paths(given: StrPath | Iterable[StrPath]) -> tuple[Path, ...]:
    if isinstance(given, (str, os.PathLike)):
        return (to_path(given, "initrd"),)
    refuse_unless(isinstance(given, Iterable), "initrd", given, "give a path, or several")
    return tuple(to_path(path, f"initrd[{number}]") for number, path in enumerate(given))
