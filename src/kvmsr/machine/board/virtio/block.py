# SPDX-License-Identifier: Apache-2.0
"""
virtio-blk
----------

A disk. Source: virtio 1.2, section 5.2.
"""

import logging
import struct
from collections.abc import Callable
from typing import Final

from kvmsr.machine.board.virtio.device import VirtioDevice
from kvmsr.machine.board.virtio.image import SECTOR, DiskImage
from kvmsr.machine.board.virtio.queue import Chain, Queue, QueueError

__all__ = ("VirtioBlock",)

_log = logging.getLogger(__name__)

_QUEUE_SIZE: Final = 128
_MOST_BYTES: Final = 1 << 30

_SEG_MAX: Final = 1 << 2
_RO: Final = 1 << 5
_BLK_SIZE: Final = 1 << 6
_FLUSH: Final = 1 << 9

_HEADER: Final = struct.Struct("<IIQ")
_IN, _OUT, _FLUSH_REQUEST, _GET_ID = 0, 1, 4, 8
_ID_SIZE: Final = 20
_OK, _IOERR, _UNSUPP = 0, 1, 2


class VirtioBlock(VirtioDevice):
    """
    A disk.

    :param image: what it holds.
    :param serial: its serial number, at most 20 characters.
    :param over: whether the run is over, so that nothing more need be done.
    :param note: called with what went wrong, at the first time.
    """

    number = 2
    class_code = 0x018000

    def __init__(
        self,
        image: DiskImage,
        serial: str,
        over: Callable[[], bool] = lambda: False,
        note: Callable[[str], None] = _log.warning,
    ) -> None:
        config = bytearray(24)
        struct.pack_into("<Q", config, 0, image.sectors)
        struct.pack_into("<I", config, 12, _QUEUE_SIZE - 2)  # without header and status
        struct.pack_into("<I", config, 20, SECTOR)
        features = _SEG_MAX | _BLK_SIZE | _FLUSH | (0 if image.writable else _RO)
        super().__init__(features, bytes(config), (Queue(_QUEUE_SIZE, _MOST_BYTES),))
        self.name = f"disk {image.path}"
        self._image = image
        self._serial = serial.encode("ascii", "replace")[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self._over = over
        self._note: Callable[[str], None] | None = note

    def serve(self, number: int, queue: Queue, features: int) -> None:
        """Do the requests that wait, at most as many as the queue holds."""
        for _ in range(queue.size):
            chain = None if self._over() else queue.pop()
            if chain is None:
                return
            queue.push(chain, self._do(chain, write_through=not features & _FLUSH))

    def _do(self, chain: Chain, *, write_through: bool) -> int:
        """Do a request, and return how many bytes were written for it."""
        head, data = _split(chain.readable, _HEADER.size)
        if len(head) < _HEADER.size or not chain.writable:
            raise QueueError("a request without header or status")
        kind, _, sector = _HEADER.unpack(head)
        *room, last = chain.writable
        status = last[-1:]
        if len(last) > 1:
            room.append(last[:-1])
        try:
            if kind == _IN:
                result = self._transfer(sector, room, self._image.read)
            elif kind == _OUT and self._image.writable:
                result = self._transfer(sector, data, self._image.write)
                if write_through:
                    self._image.flush()
            elif kind == _OUT:
                result = _IOERR
            elif kind == _FLUSH_REQUEST:
                result = _OK
                if self._image.writable:
                    self._image.flush()
            elif kind == _GET_ID:
                result = _put(room, self._serial)
            else:
                result = _UNSUPP
        except OSError as error:
            result = _IOERR
            self._complain(error)
        status[0] = result
        return sum(map(len, room)) + 1

    def _transfer(
        self,
        sector: int,
        parts: list[memoryview],
        transfer: Callable[[int, list[memoryview]], None],
    ) -> int:
        size = sum(map(len, parts))
        if size % SECTOR or sector + size // SECTOR > self._image.sectors:
            return _IOERR
        transfer(sector * SECTOR, parts)
        return _OK

    def _complain(self, error: OSError) -> None:
        note, self._note = self._note, None
        if note is not None:
            note(f"disk {self._image.path}: the guest was given an I/O error: {error.strerror}")


def _split(parts: list[memoryview], size: int) -> tuple[bytes, list[memoryview]]:
    """Return the first *size* bytes, or fewer if there are no more, and the parts behind them."""
    head, rest = b"", []
    for part in parts:
        wanted = size - len(head)
        head += bytes(part[:wanted])
        if len(part) > wanted:
            rest.append(part[wanted:])
    return head, rest


def _put(room: list[memoryview], data: bytes) -> int:
    """Write *data* into *room*; return the status."""
    if sum(map(len, room)) < len(data):
        return _IOERR
    for part in room:
        count = min(len(part), len(data))
        part[:count], data = data[:count], data[count:]
    return _OK
