# SPDX-License-Identifier: Apache-2.0
"""
Taking turns
------------

The engine's atomic instructions are atomic within one engine. So the vCPUs of a VM execute one at a
time, in turns of a millisecond, and change over between translated blocks.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("Execution",)


class Execution:
    """
    Whose turn it is, first come, first served.

    :param changed: the VM's; notified when somebody waits, so that whose turn it is comes out.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    @property
    def contended(self) -> bool:
        """Whether another vCPU waits for its turn."""
        return bool(self._waiting)

    def take(self) -> None:
        """Wait for the turn."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        with self._changed:
            self._changed.notify_all()
        turn.acquire()

    @contextmanager
    def waived(self) -> Iterator[None]:
        """Let others have their turns meanwhile, who has it does something that may take long."""
        self.pass_on()
        try:
            yield
        finally:
            self.take()

    def pass_on(self) -> None:
        """Give the turn to who waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
