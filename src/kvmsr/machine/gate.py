# SPDX-License-Identifier: Apache-2.0
"""
Holding vCPUs
-------------

A gate that each vCPU's thread passes before it enters the guest. While it is shut, no vCPU runs.

A thread that passes the gate takes no lock. Whoever shuts it sets the flag first and then kicks
every vCPU, so a thread either sees the flag or is kicked out of the guest, and then sees it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from kvmsr.errors import UsageError

__all__ = ("Gate",)

_PATIENCE: Final = 3.0
_PAUSE: Final = 0.02


class Gate:
    """The gate of a machine."""

    def __init__(self) -> None:
        self._is_shut = False
        self._held: set[threading.Thread] = set()
        self._changed = threading.Condition()
        self._shutting = threading.Lock()

    def pass_through(self) -> None:
        """Wait while the gate is shut; called in a vCPU's thread."""
        if self._is_shut:
            self._wait()

    def _wait(self) -> None:
        thread = threading.current_thread()
        with self._changed:
            self._held.add(thread)
            self._changed.notify_all()
            while self._is_shut:
                self._changed.wait()
            self._held.discard(thread)

    @contextmanager
    def shut(self, threads: Sequence[threading.Thread], kick: Callable[[], None]) -> Iterator[None]:
        """
        Keep the gate shut for the time of a ``with`` block, in which no vCPU runs.

        :param threads: the vCPUs' threads.
        :param kick: kicks all vCPUs.
        :raises UsageError: if a vCPU does not stop within 3 seconds.
        """
        with self._shutting:
            self._is_shut = True
            try:
                self._wait_for_all(threads, kick)
                yield
            finally:
                with self._changed:
                    self._is_shut = False
                    self._changed.notify_all()

    def _wait_for_all(self, threads: Sequence[threading.Thread], kick: Callable[[], None]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            kick()
            with self._changed:
                running = [one for one in threads if one.is_alive() and one not in self._held]
                if not running:
                    return
                self._changed.wait(_PAUSE)
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{running[0].name} does not stop within {_PATIENCE:g} seconds: a handler may"
                    " still be running; try again"
                )
