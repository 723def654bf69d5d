# SPDX-License-Identifier: Apache-2.0
"""
Symbols
-------

The names of a guest kernel's functions, for the addresses in a trace and the conditions of a
policy.

Linux loads itself at an address that is random (KASLR), in steps of 2 MiB. Where it was is found
out from the trace: its RIPs are those of RDMSR and WRMSR, and nearly all of these instructions are
in functions with "msr" in their names.
"""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kvmsr.errors import ImageError, SymbolError
from kvmsr.files import read_regular
from kvmsr.text import shown

__all__ = ("Symbols",)

_LIMIT: Final = 1 << 30
_STEP: Final = 1 << 21
_ENOUGH: Final = 256  # RIPs
_SLIDES: Final = 1 << 30  # RANDOMIZE_BASE_MAX_OFFSET of arch/x86/Kconfig
_LINE: Final = re.compile(rb"^([0-9a-f]{16}) ([A-Za-z]) (\S+)(\t\[.*\])?$", re.MULTILINE)
_CODE: Final = b"tTwW"
_HELPER: Final = re.compile(r"(rd|wr|read_|write_)msr|(^|_)msr_(read|write|set_bit|clear_bit)")
_ENTRY: Final = "entry_SYSCALL_64"  # arch/x86/entry/entry_64.S
_ELF: Final = b"\x7fELF"
_MAGIC: Final = b"HdrS"  # of a bzImage
_MAGIC_AT: Final = 0x202
_KERNEL: Final = range(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FFFF_0000)


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
        Read a kernel (vmlinuz or vmlinux), a System.map, or a copy of /proc/kallsyms.

        :raises SymbolError: if it is none of these, or has no functions.
        """
        try:
            data = read_regular(path, _LIMIT)
        except OSError as error:
            raise SymbolError(f"{path}: the symbols cannot be read: {error.strerror}") from None
        found = _of_kernel(path, data) if _is_kernel(data) else _of_map(data)
        if not found:
            raise SymbolError(
                f"{path}: there are no functions: give the guest's kernel (vmlinuz, or vmlinux with"
                " symbols), its System.map, or a copy of its /proc/kallsyms (read by root)"
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
        rips = list(dict.fromkeys(rips))[:_ENOUGH]
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

    def place_by_syscall(self, lstar: int) -> bool:
        """
        Find out where a 64-bit Linux kernel is, from its IA32_LSTAR.

        :return: whether that is certain: LSTAR is where the kernel enters at SYSCALL, moved by a
            slide that KASLR may choose.
        """
        try:
            slide = lstar - self.range(_ENTRY)[0]
        except SymbolError:
            return False
        if slide % _STEP or not -_SLIDES < slide < _SLIDES:
            return False
        self.slide = slide
        return True

    def have_msr(self, rips: Iterable[int]) -> bool:
        """Return whether one of these addresses is in a function for MSRs."""
        return any("msr" in self.function(rip) for rip in rips)

    def name(self, rip: int) -> str:
        """Return where *rip* is, such as ``native_write_msr+0x4``; "" if it is in no function."""
        name, offset = self._function(rip - self.slide)
        return f"{name}+{offset:#x}" if name else ""

    def function(self, address: int) -> str:
        """Return the name of the function that *address* is in, or ""."""
        return self._function(address - self.slide)[0]

    def caller(self, address: int) -> str:
        """Return the name of the function that a call returns to, or ""."""
        return self.function(address - 1)  # a call at a function's end returns to the next one

    def chain(self, rip: int, callers: Iterable[int] = (), guesses: int = 0) -> str:
        """
        Return where a guest is, and who called, such as ``native_write_msr+0x4 ← init_amd``.

        What is in no function is shown as its address, and a guess with a question mark.
        """
        words = [self.name(rip) or f"{rip:#x}"]
        for number, caller in enumerate(callers):
            name = self.caller(caller) or f"{caller:#x}"
            words.append(f"{name}{'?' * (guesses >> number & 1)}")
        return " ← ".join(words)

    def asker(self, rip: int, callers: Iterable[int]) -> str:
        """
        Return the first function on a guest's path that is no helper, such as ``init_amd``.

        What is in no function is returned as its address; "" if there are only helpers.
        """
        names = [(rip, self.function(rip)), *((one, self.caller(one)) for one in callers)]
        return next((name or f"{at:#x}" for at, name in names if not _is_helper(name)), "")

    def range(self, name: str) -> tuple[int, int]:
        """
        Return the first and the last address of a function, without :attr:`slide`.

        :raises SymbolError: if there is no function with this name, or more than one.
        """
        starts = [
            start for start, one in zip(self._starts, self._names, strict=True) if one == name
        ]
        if not starts:
            like = next((one for one in self._names if one.startswith(f"{name}.")), "")
            hint = f"; did you mean {like!r}?" if like else ""
            raise SymbolError(f"no function is called {shown(name)}{hint}")
        if len(starts) > 1:
            places = ", ".join(f"{start:#x}" for start in starts[:3])
            raise SymbolError(
                f"{len(starts)} functions are called {shown(name)}, at {places}…: write addresses"
            )
        after = bisect_right(self._starts, starts[0])
        end = self._starts[after] if after < len(self._starts) else starts[0] + 1
        return starts[0], max(starts[0], end - 1)

    def _function(self, address: int) -> tuple[str, int]:
        at = bisect_right(self._starts, address) - 1
        if at < 0 or (at == len(self._starts) - 1 and address - self._starts[at] >= _STEP):
            return "", 0
        return self._names[at], address - self._starts[at]


def _is_helper(function: str) -> bool:
    """Return whether a function of Linux reads or writes MSRs for others, by its name."""
    return _HELPER.search(function) is not None


def _of_map(data: bytes) -> list[tuple[int, str]]:
    """Return the functions of a System.map, or of kallsyms without modules."""
    return [
        (int(address, 16), name.decode())
        for address, kind, name, module in _LINE.findall(data)
        if kind in _CODE and not module and name.isascii() and int(address, 16)
    ]


def _is_kernel(data: bytes) -> bool:
    return data.startswith(_ELF) or data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def _of_kernel(path: Path, data: bytes) -> list[tuple[int, str]]:
    """Return the functions of a bzImage or an ELF file, from its symbol table or from kallsyms."""
    from kvmsr.symbols.kallsyms import read_kallsyms

    if data.startswith(_ELF):
        found = _of_elf(path)
        if found:
            return found
    else:
        data = _inside(path, data)
    return [
        (address, name.decode())
        for address, kind, name in read_kallsyms(data)
        if kind in _CODE and address in _KERNEL
    ]


def _inside(path: Path, data: bytes) -> bytes:
    """Return the kernel in a bzImage; see Linux Documentation/arch/x86/boot.rst."""
    from kvmsr.decompress import decompress

    try:
        setup = ((data[0x1F1] or 4) + 1) * 512
        offset, length = struct.unpack_from("<II", data, 0x248)
        return decompress(data[setup + offset : setup + offset + length], _LIMIT)[1]
    except (ImageError, struct.error) as error:
        raise SymbolError(f"{path}: the kernel inside cannot be read: {error}") from None


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
        raise SymbolError(f"{path}: this ELF file is damaged: {error}") from None
