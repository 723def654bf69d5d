# SPDX-License-Identifier: Apache-2.0
"""
Taking turns
------------

The engine's atomic instructions are atomic within one engine. So the vCPUs of a VM execute one at a
time, in turns of a millisecond, and change over between translated blocks.

An exit that is answered on the spot belongs to the turn, as the instruction does. But who answers
may wait for something, even for another vCPU; so a turn that stands still like that is lent.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ("Execution",)

_LONG: Final = 0.005


class _Serving:
    """An exit that is being answered by who has the turn."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.has_lent = False

    @property
    def takes_long(self) -> bool:
        return time.monotonic() - self._begun > _LONG


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
        self._serving: _Serving | None = None

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

    def serving(self, serve: Callable[[], bool]) -> bool:
        """Return what *serve* does, called by who has the turn, and lends it if that takes long."""
        mine = self._serving = _Serving()
        try:
            return serve()
        finally:
            with self._lock:
                if self._serving is mine:
                    self._serving = None
            if mine.has_lent:
                self.take()

    def lend(self) -> None:
        """If who has the turn has been serving for long, give the turn to who waits."""
        with self._lock:
            serving = self._serving
            if serving is not None and self._waiting and serving.takes_long:
                serving.has_lent, self._serving = True, None
                self._waiting.popleft().release()

    def pass_on(self) -> None:
        """Give the turn to who waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
