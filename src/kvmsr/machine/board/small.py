# SPDX-License-Identifier: Apache-2.0
"""
Small devices
-------------

The debug console, the debug exit, and ways to reset and power off.
"""

from collections.abc import Callable

__all__ = ("AcpiPm", "DebugConsole", "DebugExit", "KeyboardController", "Port92")


class DebugConsole:
    """
    A byte sink: QEMU's isa-debugcon and Bochs's port 0xe9.

    :param output: called with the bytes that the guest writes.
    """

    READBACK = 0xE9
    """The value that reads return; firmware uses it to detect the console."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def read(self, address: int, size: int) -> int:
        """Return :attr:`READBACK`."""
        return self.READBACK

    def write(self, address: int, size: int, value: int) -> None:
        """Output a byte."""
        self._output(bytes((value,)))


class DebugExit:
    """
    Ends the run with the value that the guest writes: QEMU's isa-debug-exit.

    :param leave: called with the value.
    """

    def __init__(self, leave: Callable[[int], None]) -> None:
        self._leave = leave

    def read(self, address: int, size: int) -> int:
        """Return zero, as QEMU does."""
        return 0

    def write(self, address: int, size: int, value: int) -> None:
        """End the run."""
        self._leave(value)


class KeyboardController:
    """
    A keyboard controller with nothing but its reset line.

    :param reset: called when the guest pulses the line.
    """

    STATUS = 0xFD
    """All ones except "input buffer full": the guest can always send a command."""

    def __init__(self, reset: Callable[[str], None]) -> None:
        self._reset = reset

    def read(self, address: int, size: int) -> int:
        """Return the status, or all ones for "no data"."""
        return self.STATUS if address == 0x64 else 0xFF

    def write(self, address: int, size: int, value: int) -> None:
        """Handle a command; 0xfe pulses the reset line."""
        if address == 0x64 and value == 0xFE:
            self._reset("keyboard controller")


class Port92:
    """
    System control port A: the A20 gate, which is always open, and a fast reset.

    :param reset: called when the guest sets bit 0.
    """

    def __init__(self, reset: Callable[[str], None]) -> None:
        self._reset = reset

    def read(self, address: int, size: int) -> int:
        """Return that A20 is open."""
        return 0x02

    def write(self, address: int, size: int, value: int) -> None:
        """Handle a write; bit 0 resets."""
        if value & 1:
            self._reset("port 0x92")


class AcpiPm:
    """
    ACPI power management as in the FADT: PM1 events and control, and the PM timer.

    Source: ACPI 6.5, section 4.8.3.

    :param power_off: called when the guest enters S5, the only sleep state.
    :param clock_ns: returns the time in nanoseconds.
    """

    BASE = 0x600
    """Where its ports are if there is no firmware that puts them elsewhere."""
    EVENTS, CONTROL, TIMER = 0, 4, 8
    """Offsets of its registers."""
    LENGTH = 12
    TIMER_HZ = 3_579_545
    SCI_ENABLE = 1
    SLEEP_ENABLE = 1 << 13
    SLEEP_TYPE = 7 << 10
    OFF = 0
    """The sleep type of S5, as in QEMU's PIIX4, whose ports these are, too."""

    def __init__(self, power_off: Callable[[], None], clock_ns: Callable[[], int]) -> None:
        self._power_off = power_off
        self._clock_ns = clock_ns
        self._enabled_events = 0

    def read(self, address: int, size: int) -> int:
        """Return a register; no events ever occur."""
        offset = address % 64
        if offset == self.TIMER:
            return self._clock_ns() * self.TIMER_HZ // 1_000_000_000 & 0xFFFFFF
        if offset == self.CONTROL:
            return self.SCI_ENABLE
        if offset == self.EVENTS + 2:
            return self._enabled_events
        return 0

    def write(self, address: int, size: int, value: int) -> None:
        """Write a register."""
        offset = address % 64
        if offset == self.CONTROL:
            if value & self.SLEEP_ENABLE and (value & self.SLEEP_TYPE) >> 10 == self.OFF:
                self._power_off()
        elif offset == self.EVENTS + 2:
            self._enabled_events = value & 0xFFFF
