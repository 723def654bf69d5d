# SPDX-License-Identifier: Apache-2.0
"""
Timers
------

What of a VM has deadlines: its 8254, and its local APICs. Who calls holds the VM's lock.
"""

import threading
from typing import Protocol

from kvmsr.backend.soft.clock import Clock

__all__ = ("Device", "Timers")


class Device(Protocol):
    """A device with a timer."""

    @property
    def deadline(self) -> int | None:
        """When it is due, in virtual nanoseconds; None: never."""

    def expire(self, now: int) -> None:
        """Do what is due at *now*."""


class Timers:
    """
    The timers of a VM.

    :param changed: notified when a timer is due earlier than :attr:`armed`.
    :ivar armed: when the thread that watches the time will look, in virtual nanoseconds; None: at
        no certain time.
    :ivar watched: there is such a thread.
    """

    def __init__(self, clock: Clock, changed: threading.Condition) -> None:
        self._clock, self._changed = clock, changed
        self._devices: list[Device] = []
        self.armed: int | None = None
        self.watched = False

    def add(self, device: Device) -> None:
        """Look after the timer of a device from now on."""
        self._devices.append(device)

    def remove(self, device: Device) -> None:
        """Look after it no longer."""
        self._devices.remove(device)

    def next_deadline(self) -> int | None:
        """Return when the next timer is due, or None."""
        soonest = None
        for device in self._devices:
            deadline = device.deadline
            if deadline is not None and (soonest is None or deadline < soonest):
                soonest = deadline
        return soonest

    def run(self) -> None:
        """Let the timers that are due do what they do."""
        now = self._clock.now()
        for device in self._devices:
            deadline = device.deadline
            if deadline is not None and deadline <= now:
                device.expire(now)

    def rearm(self) -> None:
        """A timer may have been set: do what is due already, and have nobody come too late."""
        deadline = self.next_deadline()
        if deadline is None:
            return
        if deadline <= self._clock.now():
            self.run()
        elif self.watched and (self.armed is None or deadline < self.armed):
            self._changed.notify_all()
