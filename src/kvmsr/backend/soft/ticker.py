# SPDX-License-Identifier: Apache-2.0
"""
The ticker
----------

The thread of a VM that watches the time while its vCPUs execute: when a timer is due it makes the
vCPU concerned come out. vCPUs that sleep look after timers themselves.
"""

import threading
import weakref
from collections.abc import Callable

from kvmsr.backend.soft import signals

__all__ = ("Ticker",)


class Ticker(threading.Thread):
    """
    The thread.

    :param changed: the VM's; notified when *look* has to look earlier than it said.
    :param look: a method of the VM's, called with *changed* held. It does what is due and returns
        for how many seconds nothing will be; None: for ever, and the thread ends. The thread also
        ends when the VM is gone, which it does not keep alive.
    """

    def __init__(self, changed: threading.Condition, look: Callable[[], float | None]) -> None:
        super().__init__(name="kvmsr-ticker", daemon=True)
        self._changed = changed
        self._look = weakref.WeakMethod(look)

    def run(self) -> None:
        """Watch, until there is nothing to watch any more."""
        signals.hold()  # they are for the thread that waits for them
        with self._changed:
            while True:
                look = self._look()
                pause = look() if look is not None else None
                del look
                if pause is None:
                    return
                self._changed.wait(pause)
