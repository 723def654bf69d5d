# SPDX-License-Identifier: Apache-2.0
"""
virtio-console
--------------

A console with one port, which Linux calls hvc0. Source: virtio 1.2, section 5.3.
"""

from collections.abc import Callable
from typing import Final

from kvmsr.machine.board.virtio.device import VirtioDevice
from kvmsr.machine.board.virtio.queue import Queue

__all__ = ("VirtioConsole",)

_RECEIVE, _TRANSMIT = 0, 1
_QUEUE_SIZE: Final = 64
_MOST_BYTES: Final = 1 << 20


class VirtioConsole(VirtioDevice):
    """
    A console.

    :param output: called with the bytes that the guest sends.
    """

    name = "virtio-console"
    number = 3
    class_code = 0x078000

    def __init__(self, output: Callable[[bytes], None]) -> None:
        queues = (Queue(_QUEUE_SIZE, _MOST_BYTES), Queue(_QUEUE_SIZE, _MOST_BYTES))
        super().__init__(0, bytes(12), queues)
        self._output = output
        self._received = bytearray()

    @property
    def backlog(self) -> int:
        """Return the number of characters that the guest has not read yet."""
        return len(self._received)

    def receive(self, data: bytes) -> None:
        """Queue *data* for the guest. May be called from any thread."""
        with self.lock:
            self._received += data
            self.has_news(_RECEIVE)

    def serve(self, number: int, queue: Queue, features: int) -> None:
        """Put out what the guest sends, or fill its buffers with what was received."""
        serve_one = self._fill if number == _RECEIVE else self._put_out
        for _ in range(queue.size):
            if not serve_one(queue):
                return

    def _put_out(self, queue: Queue) -> bool:
        chain = queue.pop()
        if chain is None:
            return False
        for part in chain.readable:
            self._output(bytes(part))
        queue.push(chain)
        return True

    def _fill(self, queue: Queue) -> bool:
        chain = queue.pop() if self._received else None
        if chain is None:
            return False
        written = 0
        for part in chain.writable:
            data = self._received[: len(part)]
            part[: len(data)] = data
            del self._received[: len(data)]
            written += len(data)
        queue.push(chain, written)
        return True
