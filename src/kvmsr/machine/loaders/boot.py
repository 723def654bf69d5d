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

    :param image: a kernel or a flat binary; None if *bios* is given.
    :param append: the kernel's command line.
    :param initrd: an initial RAM disk. Multiboot images take several: their modules.
    :param bios: a firmware image.
    :param mode: 16, 32 or 64 if *image* is a flat binary, to be started in that mode.
    :raises UsageError: if an argument is not of its kind, or they do not go together.
    """

    image: Path | None
    append: str
    initrd: tuple[Path, ...]
    bios: Path | None
    mode: int | None

    def __init__(
        self,
        image: StrPath | None = None,
        append: str = "",
        initrd: StrPath | Iterable[StrPath] = (),
        bios: StrPath | None = None,
        mode: int | None = None,
    ) -> None:
        if image is None and bios is None:
            raise UsageError("there is nothing to boot: give an image, or firmware with --bios")
        if image is not None and bios is not None:
            raise UsageError("give a kernel image or --bios, not both: there is no disk to boot")
        refuse_unless(isinstance(append, str), "append", append, "give a str")
        valid = mode is None or (type(mode) is int and mode in _MODES)
        refuse_unless(valid, "mode", mode, "give 16, 32 or 64 for a flat binary, or None")
        put = object.__setattr__
        put(self, "image", None if image is None else to_path(image, "image"))
        put(self, "append", append)
        put(self, "initrd", _paths(initrd))
        put(self, "bios", None if bios is None else to_path(bios, "bios"))
        put(self, "mode", mode)


def _paths(given: StrPath | Iterable[StrPath]) -> tuple[Path, ...]:
    if isinstance(given, (str, os.PathLike)):
        return (to_path(given, "initrd"),)
    refuse_unless(isinstance(given, Iterable), "initrd", given, "give a path, or several")
    return tuple(to_path(path, f"initrd[{number}]") for number, path in enumerate(given))
