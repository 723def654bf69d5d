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
from typing import Final

__all__ = ("Clock", "GuestClock", "scale")

_POLL_STEP: Final = 4_000
_U64: Final = (1 << 64) - 1
_NANOSECOND: Final = 1_000_000_000


def scale(khz: int) -> tuple[int, int]:
    """Return multiplier and shift that turn cycles of a TSC into nanoseconds, as pvclock does."""
    cycles, shift = khz * 1000, 0
    while cycles > 2 * _NANOSECOND:
        cycles >>= 1
        shift -= 1
    while cycles <= _NANOSECOND:
        cycles <<= 1
        shift += 1
    return (_NANOSECOND << 32) // cycles, shift


class Clock:
    """
    The time of a VM.

    :ivar real_time: keep to the host's time, even where the guest sleeps.
    :ivar tsc_khz: what the guest's TSC counts in a millisecond.
    :ivar kvmclock_ahead: how far kvmclock is ahead of it, in nanoseconds (KVM_SET_CLOCK).
    :ivar is_master: kvmclock and TSC advance together for all vCPUs (use_master_clock of
        arch/x86/kvm/x86.c): as soon as there are vCPUs and KVM had reason to look.
    """

    def __init__(self, tsc_khz: int, *, real_time: bool = False) -> None:
        self.tsc_khz = tsc_khz
        self.real_time = real_time
        self.kvmclock_ahead = 0
        self.is_master = False
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
        return self.tsc_at(self.now())

    def tsc_at(self, now: int) -> int:
        """Return what :meth:`tsc` is when :meth:`now` is *now*."""
        return now * self.tsc_khz // 1_000_000

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
    """
    The VM's clock as one vCPU's TSC shows it.

    :ivar tsc_offset: how far the guest's TSC is ahead of the VM's.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.tsc_offset = 0
        self.now = clock.now
        self.polled, self.disturbed = clock.polled, clock.disturbed

    @property
    def tsc_khz(self) -> int:
        """What the TSC counts in a millisecond."""
        return self._clock.tsc_khz

    def tsc(self) -> int:
        """Return the guest's TSC."""
        return self._clock.tsc() + self.tsc_offset & _U64

    def tsc_to_ns(self, tsc: int) -> int:
        """Return when the guest's TSC will be *tsc*."""
        return self._clock.tsc_to_ns(tsc - self.tsc_offset)

    def adjust_tsc(self, delta: int) -> None:
        """Move the guest's TSC."""
        self.tsc_offset += delta

    def kvmclock(self) -> tuple[int, int]:
        """Return the VM's kvmclock, in nanoseconds, and the guest's TSC at that moment."""
        # Of one reading: what passed between two would differ from vCPU to vCPU.
        now = self._clock.now()
        tsc = self._clock.tsc_at(now) + self.tsc_offset
        return now + self._clock.kvmclock_ahead, tsc & _U64
