# SPDX-License-Identifier: Apache-2.0
"""
Split virtqueues
----------------

The rings in guest memory through which a driver hands over buffers and gets them back. Source:
virtio 1.2, section 2.7.

The guest may write to the rings at any time, and anything at all. So each field is read once, and
what is read is checked before it is used; the rings themselves are looked up when the queue is
enabled. Python does no more for a chain than its length, which the queue's size bounds.
"""

import struct
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvmsr.errors import UsageError

__all__ = ("Chain", "GuestMemory", "Queue", "QueueError")

_NEXT: Final = 1
_WRITE: Final = 2
_INDIRECT: Final = 4
_NO_INTERRUPT: Final = 1
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_USED: Final = struct.Struct("<II")


class QueueError(Exception):
    """The driver broke a rule, so that the queue cannot be used any more."""


class GuestMemory(Protocol):
    """What a device needs of guest memory; :class:`kvmsr.kvm.Vm` has it."""

    def memory_at(self, address: int, length: int) -> memoryview:
        """Return a view of it; raise UsageError where there is none."""

    def memory_written(self, address: int, length: int) -> None:
        """Take note that a device wrote there."""


@dataclass(frozen=True, slots=True)
class Chain:
    """
    The buffers of a request, in order.

    :ivar head: its number, to give it back.
    :ivar readable: the parts that the device reads; none is empty.
    :ivar writable: the parts that it writes; none is empty.
    """

    head: int
    readable: list[memoryview] = field(default_factory=list)
    writable: list[memoryview] = field(default_factory=list)
    _addresses: list[int] = field(default_factory=list)

    def add(self, memory: GuestMemory, address: int, length: int, *, writable: bool) -> None:
        """Add a buffer; raise QueueError unless it is in memory."""
        view = _view(memory, address, length, "a buffer")
        if writable:
            self.writable.append(view)
            self._addresses.append(address)
        else:
            self.readable.append(view)

    def written(self, memory: GuestMemory, length: int) -> None:
        """Tell *memory* about the first *length* bytes of the writable parts."""
        for address, view in zip(self._addresses, self.writable, strict=True):
            if length <= 0:
                break
            memory.memory_written(address, min(length, len(view)))
            length -= len(view)


class Queue:
    """
    A queue.

    :param most: the most descriptors that it may have, a power of 2.
    :param most_bytes: the most bytes that a chain may have.
    :ivar size: the number of descriptors; the driver may make it smaller.
    :ivar descriptors: the address of the descriptor table.
    :ivar driver: the address of the available ring.
    :ivar device: the address of the used ring.
    :ivar enabled: whether the device may use it.
    :ivar given: how many chains were given back, modulo 65,536.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self._most_bytes = most_bytes
        self.reset()

    def reset(self) -> None:
        """Forget what the driver set up."""
        self.size = self.most
        self.descriptors = self.driver = self.device = 0
        self.enabled = False
        self._seen = self.given = 0

    def enable(self, memory: GuestMemory) -> None:
        """
        Start to use the queue.

        :raises QueueError: if its size or a ring's place is not valid.
        """
        size = self.size
        if not 0 < size <= self.most or size & size - 1:
            raise QueueError(f"a size of {size}, neither a power of 2 nor at most {self.most}")
        for address, alignment in ((self.descriptors, 16), (self.driver, 2), (self.device, 4)):
            if address % alignment:
                raise QueueError(f"a ring at {address:#x}, which is not aligned")
        self._memory = memory
        self._table = _view(memory, self.descriptors, 16 * size, "the descriptor table")
        self._available = _view(memory, self.driver, 4 + 2 * size, "the available ring").cast("H")
        used = _view(memory, self.device, 4 + 8 * size, "the used ring")
        self._used, self._used_index = used[4:], used[2:4].cast("H")
        self.enabled = True

    @property
    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of used buffers."""
        return not self._available[0] & _NO_INTERRUPT

    def pop(self) -> Chain | None:
        """
        Return the next chain that the driver has made available, or None.

        :raises QueueError: if it is not valid.
        """
        waiting = self._available[1] - self._seen & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise QueueError(f"{waiting} available chains in a queue of {self.size}")
        chain = self._walk(self._available[2 + self._seen % self.size])
        self._seen = self._seen + 1 & 0xFFFF
        return chain

    def _walk(self, head: int) -> Chain:
        chain = Chain(head)
        number, total = head, 0
        for _ in range(self.size):
            if number >= self.size:
                raise QueueError(f"descriptor {number} in a queue of {self.size}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._table, 16 * number)
            writable = bool(flags & _WRITE)
            if flags & _INDIRECT:
                raise QueueError("an indirect descriptor, which was not negotiated")
            if chain.writable and not writable:
                raise QueueError("a buffer to read behind one to write")
            total += length
            if total > self._most_bytes:
                raise QueueError(f"a chain of more than {self._most_bytes:,} bytes")
            if length:
                chain.add(self._memory, address, length, writable=writable)
            if not flags & _NEXT:
                return chain
            number = following
        raise QueueError("a chain that is a circle")

    def push(self, chain: Chain, written: int = 0) -> None:
        """
        Give a chain back.

        :param written: the number of bytes that were written, from the first one on.
        """
        if written:
            chain.written(self._memory, written)
        _USED.pack_into(self._used, 8 * (self.given % self.size), chain.head, written)
        self.given = self.given + 1 & 0xFFFF
        self._used_index[0] = self.given


def _view(memory: GuestMemory, address: int, length: int, what: str) -> memoryview:
    try:
        return memory.memory_at(address, length)
    except UsageError:
        raise QueueError(f"{what} of {length:#x} bytes at {address:#x}, not in memory") from None
