# SPDX-License-Identifier: Apache-2.0
"""
Virtual time
------------

The guest's time is the host's since the VM began, and more: where every vCPU sleeps it is moved to
the next timer, so that sleeping costs nothing.

Guests calibrate the TSC by polling the PIT. There each read takes a microsecond on a PC, and the
host's scheduling must not show: while the guest polls, time moves on by little at each read.
"""

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("Clock", "GuestClock")

_POLL_STEP: Final = 4_000


class Clock:
    """
    The time of a VM.

    :ivar real_time: keep to the host's time, even where the guest sleeps.
    :ivar tsc_khz: what the guest's TSC counts in a millisecond.
    """

    def __init__(self, tsc_khz: int, *, real_time: bool = False) -> None:
        self.tsc_khz = tsc_khz
        self.real_time = real_time
        self._begin = time.perf_counter_ns()
        self._warp = 0
        self._last_poll: int | None = None

    def now(self) -> int:
        """Return the nanoseconds since the VM began."""
        now = time.perf_counter_ns() - self._begin + self._warp
        last = self._last_poll
        if last is not None:
            if now - last > _POLL_STEP:
                self._warp -= now - last - _POLL_STEP
                now = last + _POLL_STEP
            self._last_poll = now
        return now

    def warp_to(self, deadline: int) -> None:
        """Move time to *deadline*, unless it is over or time is real."""
        ahead = deadline - self.now()
        if ahead > 0 and not self.real_time:
            self._warp += ahead

    def tsc(self) -> int:
        """Return what a TSC counts that began with the VM."""
        return self.now() * self.tsc_khz // 1_000_000

    def tsc_to_ns(self, tsc: int) -> int:
        """Return when :meth:`tsc` will be *tsc*."""
        return -(-tsc * 1_000_000 // self.tsc_khz)

    def polled(self) -> None:
        """The guest polls a timer."""
        if self._last_poll is None:
            self._last_poll = self.now()

    def disturbed(self) -> None:
        """The guest does something else."""
        self._last_poll = None


class GuestClock:
    """The VM's clock as one vCPU's TSC shows it."""

    def __init__(self, vcpu: "Vcpu") -> None:
        self._clock = vcpu.vm.clock
        self._vcpu = vcpu
        self.now = self._clock.now
        self.polled, self.disturbed = self._clock.polled, self._clock.disturbed

    @property
    def tsc_khz(self) -> int:
        """What the TSC counts in a millisecond."""
        return self._clock.tsc_khz

    def tsc(self) -> int:
        """Return the guest's TSC."""
        return self._vcpu.tsc()

    def tsc_to_ns(self, tsc: int) -> int:
        """Return when the guest's TSC will be *tsc*."""
        return self._clock.tsc_to_ns(tsc - self._vcpu.tsc_offset)
