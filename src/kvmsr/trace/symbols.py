# SPDX-License-Identifier: Apache-2.0
"""
Symbols
-------

The names of a guest kernel's functions, for the RIPs in a trace.

Linux loads itself at an address that is random (KASLR), in steps of 2 MiB. Where it was is found
out from the trace: its RIPs are those of RDMSR and WRMSR, and nearly all of these instructions are
in functions with "msr" in their names.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kvmsr.errors import TraceError
from kvmsr.files import read_regular

__all__ = ("Symbols",)

_LIMIT: Final = 1 << 30
_STEP: Final = 1 << 21
_SLIDES: Final = 1 << 30  # RANDOMIZE_BASE_MAX_OFFSET of arch/x86/Kconfig
_LINE: Final = re.compile(rb"^([0-9a-f]{16}) ([A-Za-z]) (\S+)(\t\[.*\])?$", re.MULTILINE)
_CODE: Final = b"tTwW"
_ELF: Final = b"\x7fELF"


class Symbols:
    """
    The functions of a kernel.

    :param functions: their addresses and names.
    :ivar slide: how far the kernel was moved, in bytes; see :meth:`find_slide`.
    """

    def __init__(self, functions: Iterable[tuple[int, str]]) -> None:
        ordered = sorted(set(functions))
        self._starts = [start for start, _ in ordered]
        self._names = [name for _, name in ordered]
        self.slide = 0

    @classmethod
    def read(cls, path: Path) -> "Symbols":
        """
        Read a vmlinux with symbols, a System.map, or a copy of /proc/kallsyms.

        :raises TraceError: if it is none of these, or has no functions.
        """
        try:
            data = read_regular(path, _LIMIT)
        except OSError as error:
            raise TraceError(f"{path}: the symbols cannot be read: {error.strerror}") from None
        found = _of_elf(path) if data.startswith(_ELF) else _of_map(data)
        if not found:
            raise TraceError(
                f"{path}: there are no functions: give a vmlinux with symbols, a System.map, or a"
                " copy of the guest's /proc/kallsyms (read by root)"
            )
        return cls(found)

    def __len__(self) -> int:
        return len(self._starts)

    def find_slide(self, rips: Iterable[int]) -> bool:
        """
        Find out where the kernel was, from the RIPs of its MSR accesses.

        :return: whether that is certain: most of the RIPs are in functions for MSRs, with one slide
            only.
        """
        rips = list(set(rips))
        scores: dict[int, int] = {}
        for slide in range(-_SLIDES, _SLIDES, _STEP):
            score = sum("msr" in self._function(rip - slide)[0] for rip in rips)
            if score:
                scores[slide] = score
        if not scores:
            return False
        best = max(scores.values())
        slides = [slide for slide, score in scores.items() if score == best]
        self.slide = min(slides, key=abs)
        return len(slides) == 1 and 2 * best >= len(rips)

    def name(self, rip: int) -> str:
        """Return where *rip* is, such as ``native_write_msr+0x4``; "" if it is in no function."""
        name, offset = self._function(rip - self.slide)
        return f"{name}+{offset:#x}" if name else ""

    def _function(self, address: int) -> tuple[str, int]:
        at = bisect_right(self._starts, address) - 1
        if at < 0 or (at == len(self._starts) - 1 and address - self._starts[at] >= _STEP):
            return "", 0
        return self._names[at], address - self._starts[at]


def _of_map(data: bytes) -> list[tuple[int, str]]:
    """Return the functions of a System.map, or of kallsyms without modules."""
    return [
        (int(address, 16), name.decode())
        for address, kind, name, module in _LINE.findall(data)
        if kind in _CODE and not module and name.isascii() and int(address, 16)
    ]


def _of_elf(path: Path) -> list[tuple[int, str]]:
    from elftools.common.exceptions import ELFError  # only for the few who have a vmlinux
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                return []
            return [
                (symbol["st_value"], symbol.name)
                for symbol in table.iter_symbols()
                if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_value"]
            ]
    except (ELFError, OSError, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise TraceError(f"{path}: this ELF file is damaged: {error}") from None
