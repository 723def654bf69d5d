# SPDX-License-Identifier: Apache-2.0
"""
The VMM's program
-----------------

Find a VMM's program, and check that a library can be preloaded into it. The dynamic loader does
that, and a statically linked program does not use one.

Two fields of elf(5) say so. They are read here, because importing a library that does that would
take a fifth of the time that kvmsr adds to the start of a VMM.
"""

import shutil
import struct
from pathlib import Path
from typing import BinaryIO, Final

from kvmsr.errors import UsageError

__all__ = ("find_vmm",)

_MAX_SCRIPTS: Final = 4

_IDENTITY: Final = struct.Struct("<4sB11x2xH")
"""Of either class: e_ident's magic and EI_CLASS, and e_machine."""

_PROGRAM_HEADERS: Final = struct.Struct("<32xQ14xHH")
"""Of an Elf64_Ehdr: e_phoff, e_phentsize and e_phnum."""

_MAGIC: Final = b"\x7fELF"
_CLASS_64, _X86_64 = 2, 62
_PT_INTERP: Final = 3


def find_vmm(command: str) -> Path:
    """
    Return the path of the program *command*.

    :raises UsageError: if there is no such program, or a library cannot be preloaded into it.
    """
    found = shutil.which(command)
    if found is None:
        raise UsageError(f"{command}: no such program; give its path, or install it")
    program = Path(found)
    seen = program
    for _ in range(_MAX_SCRIPTS):
        interpreter = _interpreter(seen)
        if interpreter is None:
            break
        seen = interpreter
    _check(seen)
    return program


def _interpreter(path: Path) -> Path | None:
    """Return the interpreter of the script *path*; None if it is not a script."""
    try:
        with path.open("rb") as file:
            line = file.readline(256)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    words = line[2:].split() if line.startswith(b"#!") else []
    return Path(words[0].decode(errors="replace")) if words else None


def _check(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(_PROGRAM_HEADERS.size)
            magic, size, machine = _IDENTITY.unpack_from(begin)
            if magic != _MAGIC:
                raise UsageError(f"{path} is not an ELF program; kvmsr exec can start no other")
            if (size, machine) != (_CLASS_64, _X86_64):
                raise UsageError(
                    f"{path} is not a 64-bit x86 program; kvmsr exec can start no other"
                )
            dynamic = _PT_INTERP in _segments(file, *_PROGRAM_HEADERS.unpack(begin))
    except struct.error:
        raise UsageError(f"{path} is not an ELF program; kvmsr exec can start no other") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    if not dynamic:
        raise UsageError(
            f"{path} is statically linked, so no library can be preloaded into it: use a build"
            " that is linked to the C library dynamically"
        )


def _segments(file: BinaryIO, offset: int, size: int, count: int) -> set[int]:
    """Return the p_type of each segment; *size* is that of a program header."""
    file.seek(offset)
    return {struct.unpack_from("<I", file.read(size))[0] for _ in range(count)}
