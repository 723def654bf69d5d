# SPDX-License-Identifier: Apache-2.0
"""
Test device
-----------

What kvm-unit-tests expect of QEMU's pc-testdev: interrupt lines that can be set, and ports and
memory that keep what is written.
"""

from collections.abc import Callable
from typing import Final

__all__ = ("TestIrqLines", "TestMemory", "TestPort")

MEMORY_BASE: Final = 0xFF000000
MEMORY_SIZE: Final = 0x10000
IRQ_BASE: Final = 0x2000
IRQ_COUNT: Final = 24
PORT_BASE: Final = 0xE0


class TestPort:
    """Ports 0xe0 to 0xe3, which keep what is written."""

    def __init__(self) -> None:
        self._data = 0

    def read(self, address: int, size: int) -> int:
        """Return what was written."""
        return self._data >> 8 * (address - PORT_BASE)

    def write(self, address: int, size: int, value: int) -> None:
        """Keep *value*."""
        shift = 8 * (address - PORT_BASE)
        mask = (1 << 8 * size) - 1 << shift
        self._data = self._data & ~mask | value << shift & mask


class TestIrqLines:
    """
    One port per interrupt line: writing 1 or 0 sets the level.

    :param set_irq: called with line and level.
    """

    def __init__(self, set_irq: Callable[[int, bool], None]) -> None:
        self._set_irq = set_irq

    def read(self, address: int, size: int) -> int:
        """Return all ones."""
        return -1

    def write(self, address: int, size: int, value: int) -> None:
        """Set the level of line *address* - 0x2000."""
        self._set_irq(address - IRQ_BASE, bool(value))


class TestMemory:
    """64 KiB at 0xff000000 that keep what is written; KVM has to emulate each access."""

    def __init__(self) -> None:
        self._bytes = bytearray(MEMORY_SIZE)

    def read(self, address: int, size: int) -> int:
        """Return what was written."""
        offset = address - MEMORY_BASE
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Keep *value*."""
        offset = address - MEMORY_BASE
        data = value.to_bytes(size, "little")[: MEMORY_SIZE - offset]
        self._bytes[offset : offset + len(data)] = data
