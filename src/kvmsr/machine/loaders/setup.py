# SPDX-License-Identifier: Apache-2.0
"""
Linux's setup header
--------------------

The header at the beginning of a bzImage: where the kernel may be loaded, what it takes, and what a
loader fills in. Source: Linux Documentation/arch/x86/boot.rst.
"""

import struct
from pathlib import Path
from typing import Final

from kvmsr.errors import ImageError

__all__ = ("Header", "is_bzimage")

_MAGIC: Final = b"HdrS"
_LEAST_VERSION: Final = 0x0202  # has a pointer to the command line
_HAS_32_BIT_ENTRY: Final = 0x0205  # before, kernels were not to be started past their setup code
_XLF_KERNEL_64: Final = 1
_LOADED_HIGH: Final = 1
_HIGH: Final = 0x100000  # where a kernel that is not relocatable is loaded
_UNKNOWN_LOADER: Final = 0xFF
_PAGE: Final = 4096


def is_bzimage(data: bytes) -> bool:
    """Return whether an image has Linux's setup header."""
    return data[0x202:0x206] == _MAGIC and data[0x1FE:0x200] == b"\x55\xaa"


class Header:
    """
    The setup header; fields that its version lacks have the values that boot.rst gives.

    :param data: the image.
    :param what: what it is, for messages.
    :ivar setup_size: bytes of setup code, from the beginning of the file; the kernel follows.
    :ivar loaded_high: whether the kernel goes above 1 MiB.
    :ivar real_mode_only: whether there is no other entry than that of the setup code.
    :ivar has_64_bit_entry: whether there is one in long mode.
    :ivar payload: where in the kernel the compressed one inside is, and its size; or 0, 0.
    :ivar load_address: where to load a kernel that does not start by its setup code.
    :ivar end: the end of what the kernel needs while it starts.
    :raises ImageError: if the header is truncated, or of a version before 2.02.
    """

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) < 0x270:
            raise ImageError(f"{what}: truncated within its setup header")
        self._what = what
        self.setup_size = ((data[0x1F1] or 4) + 1) * 512
        (version,) = struct.unpack_from("<H", data, 0x206)
        if version < _LEAST_VERSION:
            number = f"{version >> 8}.{version & 0xFF:02}"
            raise ImageError(f"{what}: boot protocol {number} is too old; 2.02 is the least")

        def since(least: int, form: str, offset: int, otherwise: int) -> int:
            has_it = version >= least
            return int(struct.unpack_from(f"<{form}", data, offset)[0]) if has_it else otherwise

        self.loaded_high = bool(data[0x211] & _LOADED_HIGH)
        code32_start = since(_HAS_32_BIT_ENTRY, "I", 0x214, 0)
        self.real_mode_only = not (self.loaded_high and code32_start)
        self.has_64_bit_entry = bool(since(0x020C, "H", 0x236, 0) & _XLF_KERNEL_64)
        self.payload = since(0x0208, "I", 0x248, 0), since(0x0208, "I", 0x24C, 0)
        preferred = since(0x020A, "Q", 0x258, _HIGH)
        self.load_address = preferred if since(0x0205, "B", 0x234, 0) else _HIGH
        self.end = preferred + since(0x020A, "I", 0x260, max(len(data) - self.setup_size, 0))
        self._initrd_max = since(0x0203, "I", 0x22C, 0x37FFFFFF)
        self._command_line_size = since(0x0206, "I", 0x238, 255)
        self._fields = data[0x1F1 : 0x202 + data[0x201]]

    def command_line(self, append: str) -> bytes:
        """Return the command line, with its end; :class:`ImageError` if it is too long."""
        line = append.encode()
        if len(line) > self._command_line_size:
            raise ImageError(
                f"{self._what}: the command line has {len(line):,} bytes, and this kernel takes"
                f" {self._command_line_size:,}"
            )
        return line + b"\0"

    def place_initrd(self, path: Path, size: int, top: int) -> int:
        """
        Return the address for an initial RAM disk: as high as the kernel takes it.

        :param path: its name, for messages.
        :param size: in bytes.
        :param top: the end of free memory.
        """
        top = min(self._initrd_max + 1, top)
        address = (top - size) & -_PAGE
        if address < self.end:
            raise ImageError(
                f"initrd {path} has {size:,} bytes and does not fit between the kernel and"
                f" {top:#x}; give the machine more --memory"
            )
        return address

    def fill(self, setup: bytearray, line: int, initrd: tuple[int, int] = (0, 0)) -> None:
        """
        Write the header to *setup* at its place, with what a loader fills in.

        :param line: the address of the command line.
        :param initrd: address and size of the initial RAM disk.
        """
        setup[0x1F1 : 0x1F1 + len(self._fields)] = self._fields
        setup[0x210] = _UNKNOWN_LOADER
        struct.pack_into("<II", setup, 0x218, *initrd)
        struct.pack_into("<I", setup, 0x228, line)
