# SPDX-License-Identifier: Apache-2.0
"""
8254
----

The three timers of a PC, and port 0x61 with the gate and the output of the third, as KVM models
them: counts are computed from the time, not counted.

Ticks can get lost, for a guest may not run for many periods. As in KVM a tick is given only when
the guest is through with the last one; the others are kept and given one by one after that
(*reinject*), or dropped.
Sources: Intel 8254 datasheet; Linux arch/x86/kvm/i8254.c.
"""

from collections.abc import Callable
from typing import Final, Protocol

from kvmsr.abi.vm import PitChannelState, PitState2

__all__ = ("Pit",)

_FREQUENCY: Final = 1_193_182
_SECOND: Final = 1_000_000_000
# KVM gives no more than 5000 ticks a second (its parameter min_timer_period_us).
_SHORTEST_PERIOD: Final = 200_000 * _FREQUENCY // _SECOND

_CONTROL: Final = 0x43
_SPEAKER: Final = 0x61
_SPEAKER_CHANNEL: Final = 2
# The 15 us of a PC's memory refresh, as a shift of nanoseconds.
_REFRESH_SHIFT: Final = 14

_SPEAKER_DUMMY: Final = 1 << 0  # KVM_CREATE_PIT2
_HPET_LEGACY: Final = 1 << 0  # KVM_SET_PIT2: an HPET has IRQ 0
_SPEAKER_ON: Final = 1 << 1

# Which byte of a count is read or written next; the first three are also the ways to choose.
_LOW, _HIGH, _LOW_THEN_HIGH, _THEN_HIGH = range(1, 5)

_ONE_SHOT: Final = (0, 1, 4)
_PERIODIC: Final = (2, 3)
_GATE_RESTARTS: Final = (1, 2, 3, 5)
_OFF: Final = 0xFF  # KVM's mode of a channel that was never set


class Clock(Protocol):
    """Virtual time."""

    def now(self) -> int:
        """Return the nanoseconds since the VM's start."""

    def polled(self) -> None:
        """Take note that the guest polls a timer."""


def _to_ns(ticks: int) -> int:
    """Return the first nanosecond after which *ticks* are over."""
    return -(-ticks * _SECOND // _FREQUENCY)


def _count(channel: PitChannelState, elapsed: int) -> int:
    """Return the counter *elapsed* ticks after it was loaded."""
    if channel.mode in (0, 1, 4, 5):
        return channel.count - elapsed & 0xFFFF
    step = 2 if channel.mode == 3 else 1
    return channel.count - step * elapsed % channel.count


def _out(channel: PitChannelState, elapsed: int) -> bool:
    """Return the OUT line *elapsed* ticks after the counter was loaded."""
    count = channel.count
    match channel.mode:
        case 1:
            return elapsed < count
        case 2:
            return elapsed > 0 and elapsed % count == 0
        case 3:
            return elapsed % count < (count + 1) // 2
        case 4 | 5:
            return elapsed == count
        case _:
            return elapsed >= count


def _latched_byte(channel: PitChannelState) -> int:
    """Take the next byte of the latched count."""
    if channel.count_latched == _LOW_THEN_HIGH:
        channel.count_latched = _HIGH
        return channel.latched_count & 0xFF
    high = channel.count_latched == _HIGH
    channel.count_latched = 0
    return channel.latched_count >> 8 if high else channel.latched_count & 0xFF


class Pit:
    """
    The 8254.

    :ivar deadline: the time, in ns of the clock, at which IRQ 0 is due; None if it never is.
    :ivar ports: the ports that are its; 0x61 only with KVM_PIT_SPEAKER_DUMMY.
    """

    def __init__(self, clock: Clock, set_irq0: Callable[[bool], object], flags: int) -> None:
        self.ports = frozenset(
            (0x40, 0x41, 0x42, _CONTROL, *((_SPEAKER,) if flags & _SPEAKER_DUMMY else ()))
        )
        self.deadline: int | None = None
        self._clock = clock
        self._set_irq0 = set_irq0
        self._period: int | None = None  # of IRQ 0, in ticks; None: it comes once
        self._periods_over = 0
        self._reinject = True
        self._pending = 0  # ticks that the guest has not done, with the one that it was given
        self._acked = True
        self._state = PitState2()
        for number in range(3):
            channel = self._channel(number)
            channel.mode = _OFF
            channel.gate = number != _SPEAKER_CHANNEL
            self._load(number, 0)

    # Ticks

    @property
    def reinject(self) -> bool:
        """Whether ticks wait for the guest (KVM_REINJECT_CONTROL), or get lost."""
        return self._reinject

    @reinject.setter
    def reinject(self, value: bool) -> None:
        if value and not self._reinject:
            self._forget_ticks()
        self._reinject = value

    def expire(self, now: int) -> None:
        """Raise IRQ 0 if it is due at *now*, in ns; periods that are over count as ticks each."""
        if self.deadline is None or now < self.deadline:
            return
        if self._period is None:
            self._pending += 1
            self.deadline = None
        else:
            over = self._elapsed(0, now) // self._period
            self._pending += over - self._periods_over
            self._periods_over = over
            # From the start and not from the last deadline, so that rounding does not add up.
            begin = self._channel(0).count_load_time
            self.deadline = begin + _to_ns((over + 1) * self._period)
        self._tick()

    def acked(self) -> None:
        """The guest is through with IRQ 0: give it the next of the ticks that wait."""
        if not self._reinject:
            return
        self._acked = True
        self._pending = max(self._pending - 1, 0)
        if self._pending:
            self._tick()

    def unmasked(self) -> None:
        """IRQ 0 is no longer masked: do not wait for the end of a tick that the mask swallowed."""
        if self._reinject:
            self._forget_ticks()

    def _forget_ticks(self) -> None:
        self._pending = 0
        self._acked = True

    def _tick(self) -> None:
        """Pulse IRQ 0, unless the guest still has the last tick to do."""
        if self._reinject:
            if not self._acked:
                return
            self._acked = False
        self._set_irq0(True)
        self._set_irq0(False)

    # Counters

    def _channel(self, number: int) -> PitChannelState:
        channel: PitChannelState = self._state.channels[number]
        return channel

    def _elapsed(self, number: int, now: int) -> int:
        """Return the ticks from the loading of a counter to *now*, in ns."""
        return (now - self._channel(number).count_load_time) * _FREQUENCY // _SECOND

    def _load(self, number: int, count: int) -> None:
        """Load a counter; 0 stands for the most, 65536."""
        channel = self._channel(number)
        channel.count = count or 0x10000
        channel.count_load_time = self._clock.now()
        if number == 0:
            self._start()

    def _start(self) -> None:
        """Set the deadline after channel 0 was loaded."""
        channel = self._channel(0)
        self.deadline = None
        if channel.mode not in (*_ONE_SHOT, *_PERIODIC) or self._state.flags & _HPET_LEGACY:
            return
        self._forget_ticks()
        periodic = channel.mode in _PERIODIC
        self._period = max(channel.count, _SHORTEST_PERIOD) if periodic else None
        self._periods_over = 0
        self.deadline = channel.count_load_time + _to_ns(self._period or channel.count)

    def _counter(self, number: int) -> int:
        return _count(self._channel(number), self._elapsed(number, self._clock.now()))

    def _latch_count(self, number: int) -> None:
        channel = self._channel(number)
        if not channel.count_latched:
            channel.latched_count = self._counter(number)
            channel.count_latched = channel.rw_mode

    def _latch_status(self, number: int) -> None:
        channel = self._channel(number)
        if not channel.status_latched:
            out = _out(channel, self._elapsed(number, self._clock.now()))
            channel.status = out << 7 | channel.rw_mode << 4 | channel.mode << 1 | channel.bcd
            channel.status_latched = 1

    # Ports

    def port_read(self, port: int, size: int) -> int:
        """Read from a port; a *size* above 1 byte reads zeros above the first."""
        if port == _CONTROL:
            return 0
        self._clock.polled()
        if port == _SPEAKER:
            return self._read_speaker()
        number = port & 3
        channel = self._channel(number)
        if channel.status_latched:
            channel.status_latched = 0
            return channel.status
        if channel.count_latched:
            return _latched_byte(channel)
        count = self._counter(number)
        state = channel.read_state
        if state == _LOW_THEN_HIGH:
            channel.read_state = _THEN_HIGH
        elif state == _THEN_HIGH:
            channel.read_state = _LOW_THEN_HIGH
        return count >> 8 & 0xFF if state in (_HIGH, _THEN_HIGH) else count & 0xFF

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write the low byte of *value* to a port, whatever the *size*."""
        value &= 0xFF
        if port == _SPEAKER:
            self._write_speaker(value)
        elif port != _CONTROL:
            self._write_count(port & 3, value)
        elif value >> 6 == 3:
            self._read_back(value)
        elif value & 0x30:
            self._set_mode(self._channel(value >> 6), value)
        else:
            self._latch_count(value >> 6)

    def _write_count(self, number: int, value: int) -> None:
        """Take a byte of a count; the counter starts anew with the last."""
        channel = self._channel(number)
        state = channel.write_state
        if state == _LOW_THEN_HIGH:
            channel.write_latch = value
            channel.write_state = _THEN_HIGH
            return
        if state == _THEN_HIGH:
            value = channel.write_latch | value << 8
            channel.write_state = _LOW_THEN_HIGH
        elif state == _HIGH:
            value <<= 8
        self._load(number, value)

    def _set_mode(self, channel: PitChannelState, value: int) -> None:
        """Take a control word; modes 6 and 7 are 2 and 3."""
        access = value >> 4 & 3
        channel.rw_mode = channel.read_state = channel.write_state = access
        mode = value >> 1 & 7
        channel.mode = mode if mode <= 5 else mode - 4
        channel.bcd = value & 1

    def _read_back(self, value: int) -> None:
        """Latch counts and statuses of several channels."""
        for number in range(3):
            if value & 2 << number:
                if not value & 0x20:
                    self._latch_count(number)
                if not value & 0x10:
                    self._latch_status(number)

    def _read_speaker(self) -> int:
        now = self._clock.now()
        channel = self._channel(_SPEAKER_CHANNEL)
        out = _out(channel, self._elapsed(_SPEAKER_CHANNEL, now))
        refresh = now >> _REFRESH_SHIFT & 1
        return channel.gate | self._state.flags & _SPEAKER_ON | refresh << 4 | out << 5

    def _write_speaker(self, value: int) -> None:
        channel = self._channel(_SPEAKER_CHANNEL)
        self._state.flags = self._state.flags & ~_SPEAKER_ON | value & _SPEAKER_ON
        gate = value & 1
        if channel.mode in _GATE_RESTARTS and gate > channel.gate:
            channel.count_load_time = self._clock.now()
        channel.gate = gate

    # State

    def get_state(self) -> PitState2:
        """Return what KVM_GET_PIT2 gives."""
        found: PitState2 = self._state.copy()
        return found

    def set_state(self, state: PitState2) -> None:
        """Take what KVM_SET_PIT2 gives; all counters start anew."""
        self._state = state.copy()
        self._state.reserved[:] = [0] * len(self._state.reserved)
        for number in range(3):
            self._load(number, self._channel(number).count)
