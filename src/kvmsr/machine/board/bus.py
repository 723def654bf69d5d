# SPDX-License-Identifier: Apache-2.0
"""
The bus
-------

Routes port and memory accesses to devices. Where there is no device, reads return all ones and
writes are ignored, as on a PC.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

from kvmsr.errors import BrokenInvariantError
from kvmsr.kvm.exits import IoIn, IoOut, MmioRead, MmioWrite

__all__ = ("Bus", "Device")

_WORD: Final = re.compile(r"[A-Z][a-z0-9]*")


class Device(Protocol):
    """A device at ports or addresses. *size* is in bytes: 1, 2 or 4, and in memory also 8."""

    def read(self, address: int, size: int) -> int:
        """Return what the guest reads, below ``1 << 8 * size``."""

    def write(self, address: int, size: int, value: int) -> None:
        """Handle a write by the guest."""


def _name(device: Device | None) -> str:
    return "" if device is None else " ".join(_WORD.findall(type(device).__name__)).lower()


class Bus:
    """Maps ports and addresses to devices."""

    def __init__(self) -> None:
        self._ports: dict[int, Device] = {}
        self._bytewise: set[int] = set()
        self._movable: list[tuple[Callable[[int], bool], Device]] = []
        self._regions: list[tuple[int, int, Device]] = []

    def add_ports(self, first: int, count: int, device: Device, *, bytewise: bool = True) -> None:
        """
        Put *device* at *count* ports from *first*.

        :param bytewise: whether its registers are bytes: wider accesses are then split.
        :raises BrokenInvariantError: if there is already a device at one of the ports.
        """
        for port in range(first, first + count):
            if port in self._ports:
                raise BrokenInvariantError(f"two devices at port {port:#x}")
            self._ports[port] = device
            if bytewise:
                self._bytewise.add(port)

    def add_movable_ports(self, decodes: Callable[[int], bool], device: Device) -> None:
        """
        Put *device* at ports that the guest may move; at others' ports, those have precedence.

        :param decodes: returns whether a port is the device's now.
        """
        self._movable.append((decodes, device))

    def _device_at(self, port: int) -> Device | None:
        found = self._ports.get(port)
        return found or next((device for decodes, device in self._movable if decodes(port)), None)

    def add_region(self, base: int, size: int, device: Device) -> None:
        """Put *device* at *size* bytes of guest-physical memory from *base*."""
        self._regions.append((base, base + size, device))

    def name(self, memory: bool, address: int) -> str:
        """Return the name of the device in memory or at a port, such as ``debug exit``, or ""."""
        if not memory:
            return _name(self._ports.get(address))
        return next((_name(one) for base, end, one in self._regions if base <= address < end), "")

    def port_in(self, exit_: IoIn) -> None:
        """Handle IN or INS."""
        size, data = exit_.size, exit_.data
        for start in range(0, size * exit_.count, size):
            value = self.read_port(exit_.port, size)
            data[start : start + size] = value.to_bytes(size, "little")

    def port_out(self, exit_: IoOut) -> None:
        """Handle OUT or OUTS."""
        size, data = exit_.size, exit_.data
        for start in range(0, size * exit_.count, size):
            value = int.from_bytes(data[start : start + size], "little")
            self.write_port(exit_.port, size, value)

    def read_port(self, port: int, size: int) -> int:
        """Return what a read of *size* bytes at *port* returns."""
        if size > 1 and port in self._bytewise:
            parts = (self.read_port(port + offset & 0xFFFF, 1) for offset in range(size))
            return sum(part << 8 * offset for offset, part in enumerate(parts))
        device = self._device_at(port)
        all_ones = (1 << 8 * size) - 1
        return all_ones if device is None else device.read(port, size) & all_ones

    def write_port(self, port: int, size: int, value: int) -> None:
        """Write *value*, of *size* bytes, to *port*."""
        if size > 1 and port in self._bytewise:
            for offset in range(size):
                self.write_port(port + offset & 0xFFFF, 1, value >> 8 * offset & 0xFF)
            return
        device = self._device_at(port)
        if device is not None:
            device.write(port, size, value)

    def memory_read(self, exit_: MmioRead) -> None:
        """Handle a read outside RAM."""
        size = len(exit_.data)
        value = (1 << 8 * size) - 1
        for base, end, device in self._regions:
            if base <= exit_.address < end:
                value &= device.read(exit_.address, size)
        exit_.data[:] = value.to_bytes(size, "little")

    def memory_write(self, exit_: MmioWrite) -> None:
        """Handle a write outside RAM."""
        for base, end, device in self._regions:
            if base <= exit_.address < end:
                value = int.from_bytes(exit_.data, "little")
                device.write(exit_.address, len(exit_.data), value)
