# SPDX-License-Identifier: Apache-2.0
"""
MSI-X
-----

The table of messages by which a PCI function interrupts, in a BAR of its own, and the capability
that says so. Source: PCI Local Bus Specification 3.0, section 6.8.2.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from kvmsr.errors import KvmsrError
from kvmsr.machine.board.pci import Function

__all__ = ("NO_VECTOR", "Msix")

NO_VECTOR: Final = 0xFFFF
SIZE: Final = 0x1000
"""Of the BAR, in bytes."""

_CAPABILITY: Final = 0x11
_ENTRY: Final = struct.Struct("<QII")
_PENDING: Final = 0x800
_MASKED: Final = 1
_ENABLE: Final = 1 << 15
_MASK_ALL: Final = 1 << 14


class Msix:
    """
    The vectors of a function.

    :param vectors: how many there are, at most 128.
    :param send: called with address and data to send a message.
    """

    def __init__(self, vectors: int, send: Callable[[int, int], object]) -> None:
        self.vectors = vectors
        self._send = send
        self._table = bytearray(_ENTRY.size * vectors)
        self._pending = 0
        self._control: Callable[[], int] = lambda: 0
        for vector in range(vectors):
            _ENTRY.pack_into(self._table, _ENTRY.size * vector, 0, 0, _MASKED)

    def add_to(self, function: Function, bar: int) -> None:
        """Add the capability, which tells that table and pending bits are in BAR *bar*."""
        body = struct.pack("<HII", self.vectors - 1, bar, _PENDING | bar)
        writable = struct.pack("<H", _ENABLE | _MASK_ALL)
        at = function.add_capability(_CAPABILITY, body, writable)
        self._control = lambda: function.get(at + 2, 2)

    @property
    def enabled(self) -> bool:
        """Whether the function interrupts by messages, and not by its pin."""
        return bool(self._control() & _ENABLE)

    def interrupt(self, vector: int) -> None:
        """Send the message of *vector*, now or when it is no longer masked."""
        if vector < self.vectors:
            self._pending |= 1 << vector
            self.deliver()

    def deliver(self) -> None:
        """Send the messages that wait and may be sent."""
        if not self._pending or self._control() & (_ENABLE | _MASK_ALL) != _ENABLE:
            return
        for vector in range(self.vectors):
            address, data, mask = _ENTRY.unpack_from(self._table, _ENTRY.size * vector)
            if self._pending >> vector & 1 and not mask & _MASKED:
                self._pending &= ~(1 << vector)
                with suppress(KvmsrError):  # the guest chose an address where nobody listens
                    self._send(address, data)

    def read(self, address: int, size: int) -> int:
        """Read from the table or the pending bits."""
        if address >= _PENDING:
            return self._pending >> 8 * (address - _PENDING)
        return int.from_bytes(self._table[address : address + size], "little")

    def write(self, address: int, size: int, value: int) -> None:
        """Write to the table, in whole dwords."""
        if size >= 4 and address % size == 0 and address + size <= len(self._table):
            self._table[address : address + size] = value.to_bytes(size, "little")
            self.deliver()
