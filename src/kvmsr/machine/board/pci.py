# SPDX-License-Identifier: Apache-2.0
"""
PCI
---

One PCI bus: its functions, their configuration spaces, and the host bridge's two windows on them:
the configuration ports (mechanism #1) and memory. Source: PCI Local Bus Specification 3.0, sections
3.2.2.3.2 (ports), 6.1 to 6.3 (configuration space) and 6.7 (capabilities).

A function decodes 32-bit memory, in BARs that the guest may move. None has ports of its own.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvmsr.errors import BrokenInvariantError, UsageError
from kvmsr.machine.board.bus import Device

__all__ = ("Bar", "Function", "Identity", "PciBus", "intx_line")

WINDOW_END: Final = 0xFEC00000
"""From the end of RAM to here, the host bridge passes accesses to memory on to the bus."""

INTX_LINES: Final = (10, 11)
"""The interrupt lines to which INTA# of the slots are wired, in turn."""

FIRST_SLOT: Final = 2
"""The first slot that is free: the chipset has those before."""
SLOTS: Final = 32

_CONFIG_SIZE: Final = 256
_VENDOR, _COMMAND, _STATUS, _REVISION, _CLASS = 0x00, 0x04, 0x06, 0x08, 0x09
_HEADER_TYPE, _BARS, _SUBSYSTEM = 0x0E, 0x10, 0x2C
_CAPABILITIES, _LINE, _PIN = 0x34, 0x3C, 0x3D
_FIRST_CAPABILITY: Final = 0x40

_MEMORY_SPACE: Final = 1 << 1
_COMMAND_BITS: Final = 0x0547  # I/O, memory, bus master, parity, SERR#, INTx off
_INTX_OFF: Final = 1 << 10
_HAS_CAPABILITIES: Final = 1 << 4
_INTX_PENDING: Final = 1 << 3
_MULTIPLE_FUNCTIONS: Final = 0x80
_ENABLE: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Identity:
    """
    What a function is.

    :ivar class_code: base class, subclass and programming interface, 24 bits.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """
    What a base address register decodes.

    :ivar number: 0 to 5.
    :ivar size: bytes of memory, a power of 2 from 16.
    :ivar device: what is there; its addresses count from 0.
    """

    number: int
    size: int
    device: Device


class Function:
    """
    A function: its configuration space, and how accesses to memory reach what is behind it.

    :param pin: its interrupt pin: 0 for none, 1 for INTA#.
    :ivar bars: what it decodes.
    """

    def __init__(self, identity: Identity, bars: Iterable[Bar] = (), *, pin: int = 0) -> None:
        self.bars = tuple(bars)
        self._bytes = bytearray(_CONFIG_SIZE)
        self._writable = bytearray(_CONFIG_SIZE)
        self._next = _FIRST_CAPABILITY
        self._last_link = _CAPABILITIES
        self._watchers: list[Callable[[], None]] = []
        self._wants_intx = False
        self._assert_intx: Callable[[bool], None] = lambda level: None
        self.set(_VENDOR, 2, identity.vendor)
        self.set(_VENDOR + 2, 2, identity.device)
        self.set(_COMMAND, 2, 0, writable=_COMMAND_BITS)
        self.set(_REVISION, 1, identity.revision)
        self.set(_CLASS, 3, identity.class_code)
        self.set(_SUBSYSTEM, 2, identity.subsystem_vendor)
        self.set(_SUBSYSTEM + 2, 2, identity.subsystem)
        self.set(_LINE, 1, 0, writable=0xFF)
        self.set(_PIN, 1, pin)
        for bar in self.bars:
            if bar.size < 16 or bar.size & bar.size - 1:
                raise BrokenInvariantError(f"a BAR of {bar.size} bytes")
            self.set(_BARS + 4 * bar.number, 4, 0, writable=-bar.size & 0xFFFFFFFF)

    def set(self, offset: int, size: int, value: int, *, writable: int = 0) -> None:
        """Set a register, and which of its bits the guest may write."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        """Return a register."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def add_capability(self, number: int, body: bytes, writable: bytes = b"") -> int:
        """
        Add a capability, and return where it is.

        :param body: what follows its number and the link to the next one.
        :param writable: the bits in *body* that the guest may write.
        """
        at, size = self._next, 2 + len(body)
        self._next = at + size + -size % 4
        if self._next > _CONFIG_SIZE:
            raise BrokenInvariantError("too many PCI capabilities")
        self.set(at, 2, number)
        self._bytes[at + 2 : at + size] = body
        self._writable[at + 2 : at + 2 + len(writable)] = writable
        self._bytes[self._last_link] = at
        self._last_link = at + 1
        self.set(_STATUS, 2, self.get(_STATUS, 2) | _HAS_CAPABILITIES)
        return at

    def watch(self, changed: Callable[[], None]) -> None:
        """Have *changed* called after each write to the configuration space."""
        self._watchers.append(changed)

    def read_config(self, offset: int, size: int) -> int:
        """Return what the guest reads there."""
        return self.get(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the bits that are writable there."""
        mask = int.from_bytes(self._writable[offset : offset + size], "little")
        merged = self.get(offset, size) & ~mask | value & mask
        self._bytes[offset : offset + size] = merged.to_bytes(size, "little")
        self.set_intx(self._wants_intx)  # the command register may say otherwise now
        for changed in self._watchers:
            changed()

    @property
    def decodes_memory(self) -> bool:
        """Whether the command register lets its BARs decode."""
        return bool(self.get(_COMMAND, 2) & _MEMORY_SPACE)

    def set_intx(self, pending: bool) -> None:
        """Assert INTA#, if the command register lets it, or deassert it."""
        self._wants_intx = pending
        status = self.get(_STATUS, 2) & ~_INTX_PENDING
        self._bytes[_STATUS] = status & 0xFF | (_INTX_PENDING if pending else 0)
        self._assert_intx(pending and not self.get(_COMMAND, 2) & _INTX_OFF)

    def connect(self, line: int, assert_intx: Callable[[bool], None]) -> None:
        """
        Connect its interrupt pin.

        :param line: the interrupt line behind it, which the guest may read, as firmware notes it.
        :param assert_intx: called with the level that it gives the pin.
        """
        self._assert_intx = assert_intx
        if self.get(_PIN, 1):
            self.set(_LINE, 1, line, writable=0xFF)

    def base(self, bar: Bar) -> int:
        """Return where the guest has put *bar*."""
        return self.get(_BARS + 4 * bar.number, 4)

    def place(self, bar: Bar, address: int) -> None:
        """Put *bar* at *address* and decode it, as firmware does."""
        self.write_config(_BARS + 4 * bar.number, 4, address)
        self.write_config(_COMMAND, 2, self.get(_COMMAND, 2) | _MEMORY_SPACE)


class PciBus:
    """
    Bus 0: ports 0xcf8 to 0xcff, and memory up to :data:`WINDOW_END`, where there is no RAM.

    :param reset: called when the guest sets bit 2 of port 0xcf9, the reset register.
    :param set_irq: called with number and level of an interrupt line.
    """

    def __init__(self, reset: Callable[[str], None], set_irq: Callable[[int, bool], None]) -> None:
        self._reset = reset
        self._lines = {line: _Line(partial(set_irq, line)) for line in INTX_LINES}
        self._address = 0
        self._functions: dict[tuple[int, int], Function] = {}
        self._decoded: tuple[tuple[int, int, Device], ...] = ()
        self._lock = threading.Lock()
        self.ports = PciPorts(self)
        self.memory = PciMemory(self)

    def add(self, slot: int, function: Function, number: int = 0) -> None:
        """
        Put *function* into a slot.

        :param number: of the function in the slot; function 0 has to be there before.
        :raises BrokenInvariantError: if there is already one, or no such slot.
        """
        place = (slot, number)
        if place in self._functions or not (0 <= slot < SLOTS and 0 <= number < 8):
            raise BrokenInvariantError(f"PCI function {slot:02x}.{number} cannot be added")
        self._functions[place] = function
        if number:
            first = self._functions[slot, 0]
            first.set(_HEADER_TYPE, 1, _MULTIPLE_FUNCTIONS)
        function.watch(self._map)
        line = intx_line(slot)
        function.connect(line, partial(self._lines[line].drive, place))

    def add_next(self, function: Function) -> None:
        """
        Put *function* into the first slot that is free.

        :raises UsageError: if there is none.
        """
        for slot in range(FIRST_SLOT, SLOTS):
            if (slot, 0) not in self._functions:
                self.add(slot, function)
                return
        raise UsageError(f"too many devices: the PCI bus has {SLOTS - FIRST_SLOT} slots for them")

    def function(self, slot: int, number: int = 0) -> Function | None:
        """Return a function, or None where there is none."""
        return self._functions.get((slot, number))

    def assign(self) -> None:
        """Give the functions addresses, as firmware does."""
        address = WINDOW_END
        for function in self._functions.values():
            for bar in function.bars:
                address = (address - bar.size) & -bar.size
                function.place(bar, address)

    def _map(self) -> None:
        """Find out again where BARs decode; readers see the old map or the new one."""
        self._decoded = tuple(
            (base, base + bar.size, bar.device)
            for function in self._functions.values()
            if function.decodes_memory
            for bar in function.bars
            if (base := function.base(bar)) and base + bar.size <= WINDOW_END
        )

    def find(self, address: int, size: int) -> tuple[Device, int] | None:
        """Return what decodes *size* bytes at *address*, and the offset there."""
        for base, end, device in self._decoded:
            if base <= address and address + size <= end:
                return device, address - base
        return None

    def read_port(self, port: int, size: int) -> int:
        """Return the address register, or what it selects; all ones where there is nothing."""
        if port < 0xCFC:
            return self._address if port == 0xCF8 and size == 4 else 0 if port == 0xCF9 else -1
        with self._lock:
            selected = self._selected(port, size)
            return -1 if selected is None else selected[0].read_config(selected[1], size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """Write the address register or what it selects, or reset by bit 2 of port 0xcf9."""
        if port == 0xCF8 and size == 4:
            self._address = value
        elif port == 0xCF9 and size == 1 and value & 4:
            self._reset("port 0xcf9")
        elif port >= 0xCFC:
            with self._lock:
                selected = self._selected(port, size)
                if selected is not None:
                    selected[0].write_config(selected[1], size, value)

    def _selected(self, port: int, size: int) -> tuple[Function, int] | None:
        address = self._address
        offset = (address & 0xFC) + port - 0xCFC
        # Bit 31, with bus 0 and without the bits that select extended registers.
        if address >> 16 != _ENABLE >> 16 or port + size > 0xD00:
            return None
        function = self._functions.get((address >> 11 & 31, address >> 8 & 7))
        return None if function is None else (function, offset)


class _Line:
    """An interrupt line that several pins share: it is asserted while one of them is."""

    def __init__(self, set_level: Callable[[bool], None]) -> None:
        self._set_level = set_level
        self._lock = threading.Lock()
        self._asserted: set[tuple[int, int]] = set()

    def drive(self, place: tuple[int, int], level: bool) -> None:
        """Let the pin of the function at *place* have a level."""
        with self._lock:
            before = bool(self._asserted)
            (self._asserted.add if level else self._asserted.discard)(place)
            if before != bool(self._asserted):
                self._set_level(not before)


class PciPorts:
    """The configuration ports of a bus, as a device."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, address: int, size: int) -> int:
        """Read one of them."""
        return self._bus.read_port(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write one of them."""
        self._bus.write_port(address, size, value)


class PciMemory:
    """The window for memory, as a device."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, address: int, size: int) -> int:
        """Read from what decodes the address; all ones if nothing does."""
        found = self._bus.find(address, size)
        return -1 if found is None else found[0].read(found[1], size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write to what decodes the address."""
        found = self._bus.find(address, size)
        if found is not None:
            found[0].write(found[1], size, value)


def intx_line(slot: int) -> int:
    """Return the interrupt line to which INTA# of *slot* is wired."""
    return INTX_LINES[slot % len(INTX_LINES)]
