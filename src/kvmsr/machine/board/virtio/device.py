# SPDX-License-Identifier: Apache-2.0
"""
Virtio devices
--------------

What all of them have: features, queues, and a configuration. How the driver reaches that is the
transport's.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from kvmsr.machine.board.virtio.queue import Queue

__all__ = ("VirtioDevice",)


class VirtioDevice(ABC):
    """
    A device, which serves its queues on the thread that notifies it.

    That is a vCPU's: the one that asked for it. An I/O thread would let that vCPU go on, at the
    price of two switches of threads for each request; and on the soft backend, where time moves on
    to the next timer while all vCPUs sleep, a guest that waited for such a thread would see its
    requests take minutes. The lock is the device's own, so other vCPUs are not held up.

    :ivar name: what it is, for people.
    :ivar number: its kind (virtio 1.2, section 5).
    :ivar class_code: the same in PCI's terms.
    :ivar lock: held whenever the device is used.
    :ivar features: what it offers, besides VIRTIO_F_VERSION_1.
    :ivar config: its configuration, read-only.
    :ivar queues: its queues.
    """

    name: str
    number: ClassVar[int]
    class_code: ClassVar[int]

    def __init__(self, features: int, config: bytes, queues: tuple[Queue, ...]) -> None:
        self.lock = threading.RLock()
        self.features = features
        self.config = config
        self.queues = queues
        self.has_news: Callable[[int], None] = lambda number: None
        """The transport's: called, with the lock held, to have a queue served."""

    @abstractmethod
    def serve(self, number: int, queue: Queue, features: int) -> None:
        """
        Do what can be done for a queue.

        :param features: what the driver has accepted.
        :raises QueueError: if the driver has broken the queue.
        """
