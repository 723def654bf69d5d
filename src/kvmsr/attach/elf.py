# SPDX-License-Identifier: Apache-2.0
"""
The VMM's program
-----------------

Find a VMM's program, and check that a library can be preloaded into it. The dynamic loader does
that, and a statically linked program does not use one.
"""

import shutil
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kvmsr.errors import UsageError

__all__ = ("find_vmm",)

_MAX_SCRIPTS: Final = 4


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
            elf = ELFFile(file)
            machine = elf["e_machine"]
            dynamic = any(segment["p_type"] == "PT_INTERP" for segment in elf.iter_segments())
    except ELFError:
        raise UsageError(f"{path} is not an ELF program; kvmsr exec can start no other") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror}") from None
    if machine != "EM_X86_64":
        raise UsageError(f"{path} is not a 64-bit x86 program; kvmsr exec can start no other")
    if not dynamic:
        raise UsageError(
            f"{path} is statically linked, so no library can be preloaded into it: use a build"
            " that is linked to the C library dynamically"
        )
