# SPDX-License-Identifier: Apache-2.0
"""
The local APIC's timer
----------------------

One-shot, periodic, and TSC-deadline (SDM volume 3, 11.5.4). Its clock is 1 GHz before the divider,
as KVM's.
"""

from typing import Final, Protocol

__all__ = ("ONE_SHOT", "PERIODIC", "TSC_DEADLINE", "Clock", "Timer")

ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2
_SHORTEST_PERIOD: Final = 200_000
"""Nanoseconds; KVM lets no guest ask for more interrupts than that."""


class Clock(Protocol):
    """A vCPU's time."""

    def now(self) -> int:
        """Return virtual nanoseconds."""

    def tsc_to_ns(self, tsc: int) -> int:
        """Return when the guest's TSC will be *tsc*."""


class Timer:
    """
    The timer.

    :ivar mode: as in LVTT.
    :ivar initial: the initial count.
    :ivar divide: what the clock is divided by.
    :ivar deadline: when it is due, in virtual nanoseconds; None: never.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.mode = ONE_SHOT
        self.initial = 0
        self.divide = 2
        self.deadline: int | None = None
        self._tsc_deadline = 0

    def reset(self) -> None:
        """Stop."""
        self.mode, self.initial, self.divide = ONE_SHOT, 0, 2
        self.deadline, self._tsc_deadline = None, 0

    @property
    def _period(self) -> int:
        period = self.initial * self.divide
        return max(period, _SHORTEST_PERIOD) if self.mode == PERIODIC else period

    def set_mode(self, mode: int) -> None:
        """Set the mode; a change between counting and deadline stops the timer."""
        if (mode == TSC_DEADLINE) != (self.mode == TSC_DEADLINE):
            self.deadline, self._tsc_deadline, self.initial = None, 0, 0
        self.mode = mode

    def start(self, initial: int, left: int | None = None) -> None:
        """Start to count down from *initial*, or from what is *left* of it."""
        if self.mode == TSC_DEADLINE:
            return
        self.initial = initial
        until = self._period if left is None else left * self.divide
        self.deadline = self._clock.now() + until if initial else None

    def set_divide(self, divide: int) -> None:
        """Divide the clock by another number; what is left of the count stays."""
        left = self.current
        self.divide = divide
        if self.deadline is not None and self.mode != TSC_DEADLINE:
            self.start(self.initial, left)

    @property
    def current(self) -> int:
        """What is left of the count."""
        if self.deadline is None or self.mode == TSC_DEADLINE:
            return 0
        left = self.deadline - self._clock.now()
        if left < 0:
            left = left % self._period if self.mode == PERIODIC else 0
        return left // self.divide

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 unless armed."""
        return self._tsc_deadline

    @tsc_deadline.setter
    def tsc_deadline(self, value: int) -> None:
        if self.mode != TSC_DEADLINE:
            return
        self._tsc_deadline = value
        self.deadline = self._clock.tsc_to_ns(value) if value else None

    def expire(self, now: int) -> None:
        """It is due: stop, or go on to the next period; what was missed is missed."""
        if self.mode != PERIODIC or self.deadline is None:
            self.deadline, self._tsc_deadline = None, 0
            return
        periods = (now - self.deadline) // self._period + 1
        self.deadline += periods * self._period
