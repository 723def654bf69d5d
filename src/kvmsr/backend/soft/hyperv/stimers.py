# SPDX-License-Identifier: Apache-2.0
"""
Synthetic timers
----------------

A vCPU's four timers, which expire by a message at a SINT or, in direct mode, by an interrupt (TLFS
12.3; struct kvm_vcpu_hv_stimer).
"""

import struct
from collections.abc import Callable
from typing import Final

from kvmsr.backend.soft.hyperv.synic import Delivery, Synic, SynicVcpu

__all__ = ("Stimers",)

_ENABLE, _PERIODIC, _AUTO_ENABLE, _DIRECT = 1, 1 << 1, 1 << 3, 1 << 12
_EXPIRED: Final = 0x8000_0010
_PAYLOAD: Final = struct.Struct("<IIQQ")
"""Timer, reserved, when it expired, when it was delivered."""
_COUNT: Final = 4


class _Stimer:
    """
    One timer; times are partition time.

    :ivar expires: when it is due; 0: it is not known yet.
    :ivar deadline: the same, in nanoseconds of the VM's clock; None: it does not run.
    :ivar marked: it is to be looked at.
    :ivar waits: its message waits for the slot.
    """

    def __init__(self) -> None:
        self.config = self.count = self.expires = 0
        self.deadline: int | None = None
        self.marked = self.waits = False

    @property
    def sint(self) -> int:
        return self.config >> 16 & 0xF

    def clean_up(self) -> None:
        self.deadline = None
        self.marked = self.waits = False
        self.expires = 0


class Stimers:
    """
    The timers of a vCPU, for ``Timers``; under the VM's lock.

    :param time: returns partition time.
    :param now: returns the nanoseconds of the VM's clock.
    """

    def __init__(
        self, vcpu: SynicVcpu, synic: Synic, time: Callable[[], int], now: Callable[[], int]
    ) -> None:
        self._vcpu, self._synic, self._time, self._now = vcpu, synic, time, now
        self._timers = [_Stimer() for _ in range(_COUNT)]

    @property
    def deadline(self) -> int | None:
        """When the next one is due, in nanoseconds; None: never."""
        return min((t.deadline for t in self._timers if t.deadline is not None), default=None)

    def expire(self, now: int) -> None:
        """Do what is due at *now*."""
        for timer in self._timers:
            if timer.deadline is not None and timer.deadline <= now:
                timer.deadline = None
                timer.marked = True
        self.process()

    # Registers

    def get_config(self, number: int) -> int:
        """Return HV_X64_MSR_STIMERn_CONFIG."""
        return self._timers[number].config

    def get_count(self, number: int) -> int:
        """Return HV_X64_MSR_STIMERn_COUNT."""
        return self._timers[number].count

    def set_config(self, number: int, value: int, host: bool) -> bool:
        """Set HV_X64_MSR_STIMERn_CONFIG; return False where that is illegal."""
        if not self._synic.active and (not host or value):
            return False
        timer = self._timers[number]
        was_enabled = timer.config & _ENABLE
        timer.clean_up()
        timer.config = value
        if was_enabled and not value & _DIRECT and not timer.sint:
            timer.config &= ~_ENABLE
        timer.marked = bool(timer.config & _ENABLE)
        return True

    def set_count(self, number: int, value: int, host: bool) -> bool:
        """Set HV_X64_MSR_STIMERn_COUNT; return False where that is illegal."""
        if not self._synic.active and (not host or value):
            return False
        timer = self._timers[number]
        timer.clean_up()
        timer.count = value
        if not host:
            if not value:
                timer.config &= ~_ENABLE
            elif timer.config & _AUTO_ENABLE:
                timer.config |= _ENABLE
        timer.marked = bool(timer.config & _ENABLE)
        return True

    # Running

    def process(self) -> None:
        """Look at those that are marked (kvm_hv_process_stimers), and whose slots are free now."""
        free, self._synic.acknowledged = self._synic.acknowledged, 0
        for timer in self._timers:
            waits = timer.waits and timer.config & _ENABLE and not timer.config & _DIRECT
            if waits and free >> timer.sint & 1:
                timer.marked = True
        for number, timer in enumerate(self._timers):
            if timer.marked:
                timer.marked = False
                if timer.config & _ENABLE:
                    self._run(number, timer)

    def _run(self, number: int, timer: _Stimer) -> None:
        if timer.expires and self._time() >= timer.expires:
            self._expire(number, timer)
        if not (timer.config & _ENABLE and timer.count):
            timer.clean_up()
        elif not timer.waits:
            self._start(timer)

    def _start(self, timer: _Stimer) -> None:
        now = self._time()
        if not timer.config & _PERIODIC:
            timer.expires = timer.count
        elif not timer.expires:
            timer.expires = now + timer.count
        elif now >= timer.expires:
            timer.expires = now + timer.count - (now - timer.expires) % timer.count
        # What is over already expires at once, as soon as somebody looks.
        timer.deadline = self._now() + 100 * max(timer.expires - now, 0)

    def _expire(self, number: int, timer: _Stimer) -> None:
        timer.waits = True
        if timer.config & _DIRECT:
            done = self._vcpu.interrupt(timer.config >> 4 & 0xFF)
        else:
            payload = _PAYLOAD.pack(number, 0, timer.expires, self._time())
            retries = not timer.config & _PERIODIC  # ticks do not pile up
            came = self._synic.deliver(timer.sint, _EXPIRED, payload, retries=retries)
            done = came == Delivery.DONE
        if done:
            timer.waits = False
            if not timer.config & _PERIODIC:
                timer.config &= ~_ENABLE
