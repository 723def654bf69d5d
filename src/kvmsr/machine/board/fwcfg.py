# SPDX-License-Identifier: Apache-2.0
"""
fw_cfg
------

QEMU's interface through which firmware learns about the machine: a selector at port 0x510, a byte
stream at 0x511 and DMA at 0x514. Source: QEMU docs/specs/fw_cfg.rst.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ("E820Entry", "FwCfg")

E820Entry = tuple[int, int, int]
"""Start, size, type."""

_SIGNATURE, _ID, _RAM_SIZE, _NB_CPUS, _MAX_CPUS, _FILE_DIR = 0x00, 0x01, 0x03, 0x05, 0x0F, 0x19
_FIRST_FILE: Final = 0x20
_WITH_DMA: Final = 3  # traditional interface and DMA

_WRITE_CHANNEL: Final = 0x4000

_ZEROS: Final = bytes(1 << 16)

_DMA_ERROR: Final = 0x01
_DMA_READ: Final = 0x02
_DMA_SKIP: Final = 0x04
_DMA_SELECT: Final = 0x08


class FwCfg:
    """
    The interface and its items.

    :param ram_size: bytes of RAM.
    :param cpus: the number of vCPUs.
    :param e820: the memory map.
    :param memory: returns a view of guest-physical memory, given address and size; raises
        UsageError where there is no memory.
    """

    def __init__(
        self,
        ram_size: int,
        cpus: int,
        e820: Iterable[E820Entry],
        memory: Callable[[int, int], memoryview],
    ) -> None:
        self._memory = memory
        self._key = 0
        self._offset = 0
        self._dma_address = 0
        self._items = {
            _SIGNATURE: b"QEMU",
            _ID: struct.pack("<I", _WITH_DMA),
            _RAM_SIZE: struct.pack("<Q", ram_size),
            _NB_CPUS: struct.pack("<H", cpus),
            _MAX_CPUS: struct.pack("<H", cpus),
        }
        self._directory: list[bytes] = []
        self._fresh: dict[int, Callable[[], bytes]] = {}
        self.add_file("etc/e820", b"".join(struct.pack("<QQI", *entry) for entry in e820))
        # There is no disk: SeaBIOS should give up booting at once, and reset.
        self.add_file("etc/boot-fail-wait", struct.pack("<I", 0))

    def add_item(self, key: int, data: bytes) -> None:
        """Add an item without a name, before the guest starts."""
        self._items[key] = data

    def add_file(self, name: str, data: bytes | Callable[[], bytes]) -> None:
        """
        Add an item with a name of at most 55 bytes, before the guest starts.

        :param data: the contents, or what returns them when the guest selects the item, in the same
            size always.
        """
        key = _FIRST_FILE + len(self._directory)
        content = data if isinstance(data, bytes) else data()
        self.add_item(key, content)
        if not isinstance(data, bytes):
            self._fresh[key] = data
        self._directory.append(struct.pack(">IHH56s", len(content), key, 0, name.encode()))
        count = struct.pack(">I", len(self._directory))
        self._items[_FILE_DIR] = count + b"".join(self._directory)

    def read(self, address: int, size: int) -> int:
        """Return the next bytes of the selected item, or "QEMU CFG" from the DMA register."""
        if address == 0x511:
            return int.from_bytes(self._next(size), "little")
        if address >= 0x514:
            offset = address - 0x514
            return int.from_bytes(b"QEMU CFG"[offset : offset + size], "little")
        return self._key

    def write(self, address: int, size: int, value: int) -> None:
        """Select an item, or start DMA with the address, which is big-endian in two halves."""
        if address == 0x510:
            self._select(value)
        elif address == 0x514:
            self._dma_address = _swap(value, 4) << 32
        elif address == 0x518:
            self._dma(self._dma_address | _swap(value, 4))
            self._dma_address = 0

    def _select(self, key: int) -> None:
        self._key = key & ~_WRITE_CHANNEL  # the items are read-only
        self._offset = 0
        if self._key in self._fresh:
            self._items[self._key] = self._fresh[self._key]()

    def _next(self, size: int) -> bytes:
        item = self._items.get(self._key, b"")
        data = item[self._offset : self._offset + size]
        self._offset += size
        return data.ljust(size, b"\0")

    def _read_into(self, room: memoryview) -> None:
        """Fill *room*; behind the end of the item there are zeros, of any number."""
        left = self._items.get(self._key, b"")[self._offset : self._offset + len(room)]
        room[: len(left)] = left
        for start in range(len(left), len(room), len(_ZEROS)):
            part = room[start : start + len(_ZEROS)]
            part[:] = _ZEROS[: len(part)]
        self._offset += len(room)

    def _dma(self, address: int) -> None:
        try:
            control, length, target = struct.unpack(">IIQ", self._memory(address, 16))
        except Exception:
            return  # there is nowhere to report the error
        if control & _DMA_SELECT:
            self._select(control >> 16)
        result = 0
        if not control & (_DMA_READ | _DMA_SKIP | _DMA_SELECT):
            result = _DMA_ERROR
        elif control & _DMA_READ:
            try:
                self._read_into(self._memory(target, length))
            except Exception:
                result = _DMA_ERROR
        elif control & _DMA_SKIP:
            self._offset += length
        self._memory(address, 4)[:] = struct.pack(">I", result)


def _swap(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")
