# SPDX-License-Identifier: Apache-2.0
"""
CMOS and real-time clock
------------------------

The clock of an MC146818 (UTC, read-only, without alarm) and the bytes in which firmware finds the
size of memory. Sources: Motorola MC146818 data sheet; QEMU hw/i386/pc.c for what the bytes mean.
"""

import time
from collections.abc import Callable
from typing import Final

__all__ = ("Cmos",)

_MIB: Final = 1 << 20
_REGISTER_A: Final = 0x26  # 32.768 kHz time base, no update in progress
_STATUS_B_BINARY: Final = 0x04
_STATUS_B_24H: Final = 0x02


class Cmos:
    """
    The index register at port 0x70 and the data register at port 0x71.

    :param low: bytes of RAM below 4 GiB.
    :param high: bytes of RAM from 4 GiB up.
    :param cpus: the number of vCPUs.
    :param clock: returns the seconds since 1970; tests pass their own.
    """

    def __init__(
        self, low: int, high: int, cpus: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._index = 0
        self._bytes = bytearray(128)
        self._bytes[0x0A] = _REGISTER_A
        self._bytes[0x0B] = _STATUS_B_24H
        self._bytes[0x0D] = 0x80  # the battery is good
        self._put(0x15, min(low, 640 << 10) >> 10, 2)
        self._put(0x17, min(max(low - _MIB, 0) >> 10, 0xFFFF), 2)
        self._put(0x30, min(max(low - _MIB, 0) >> 10, 0xFFFF), 2)
        self._put(0x34, max(low - 16 * _MIB, 0) >> 16, 2)
        self._put(0x5B, high >> 16, 3)
        self._bytes[0x5F] = min(cpus - 1, 0xFF)

    def _put(self, index: int, value: int, size: int) -> None:
        self._bytes[index : index + size] = value.to_bytes(size, "little")

    def read(self, address: int, size: int) -> int:
        """Return the selected byte."""
        if address == 0x70:
            return 0xFF  # write only
        if self._index in _FIELDS:
            value = _FIELDS[self._index](time.gmtime(self._clock()))
            binary = self._bytes[0x0B] & _STATUS_B_BINARY
            return value if binary else value // 10 << 4 | value % 10
        return self._bytes[self._index]

    def write(self, address: int, size: int, value: int) -> None:
        """Select a byte, or write the selected one; the clock cannot be set."""
        if address == 0x70:
            self._index = value & 0x7F  # bit 7 masks NMIs, which no device here raises
        elif self._index not in _FIELDS and self._index not in (0x0A, 0x0C, 0x0D):
            self._bytes[self._index] = value


_FIELDS: Final[dict[int, Callable[[time.struct_time], int]]] = {
    0x00: lambda now: min(now.tm_sec, 59),
    0x02: lambda now: now.tm_min,
    0x04: lambda now: now.tm_hour,
    0x06: lambda now: (now.tm_wday + 1) % 7 + 1,  # Sunday is 1
    0x07: lambda now: now.tm_mday,
    0x08: lambda now: now.tm_mon,
    0x09: lambda now: now.tm_year % 100,
    0x32: lambda now: now.tm_year // 100,
}
