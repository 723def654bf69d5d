# SPDX-License-Identifier: Apache-2.0
"""
AML
---

What the DSDT says: how to turn the machine off; of the PCI bus a root bridge, what it passes on,
and where interrupt pins go; and the P-states of the processors. Source: ACPI 6.5, sections 6.2.13
(_PRT), 6.4 (resources), 7.4.2 (_S5), 8.4.5 (P-states) and 20.2 (AML).
"""

import struct
from collections.abc import Sequence
from typing import Final

from kvmsr.machine.board.pci import FIRST_SLOT, SLOTS, WINDOW_END, intx_line

__all__ = ("pci_root", "processors", "sleep_off")

_NAME, _SCOPE, _BUFFER, _PACKAGE, _DEVICE = b"\x08", b"\x10", b"\x11", b"\x12", b"\x5b\x82"
_METHOD, _RETURN, _STRING = b"\x14", b"\xa4", b"\x0d"
_PCI_HOST_BRIDGE: Final = 0x030AD041  # EISAID("PNP0A03")

_MEMORY, _PORTS, _BUSES = 0, 1, 2
_FIXED: Final = 0x0C  # both ends of the range
_READ_WRITE: Final = 1
_ENTIRE_RANGE: Final = 3
_END_TAG: Final = b"\x79\x00"
_FIXED_HARDWARE: Final = 0x7F  # the CPU's own registers: MSRs
_LATENCY: Final = 10  # microseconds until a P-state is reached


def sleep_off(kind: int) -> bytes:
    """Return ``Name (\\_S5, Package () {kind, kind, 0, 0})``: the sleep type that means "off"."""
    return _name(b"\\_S5_", _package(*map(_integer, (kind, kind, 0, 0))))


def pci_root(ram_end: int) -> bytes:
    """
    Return ``Scope (\\_SB) { Device (PCI0) {...} }``.

    :param ram_end: the end of RAM below 4 GiB, from which on the bus has memory.
    """
    names = (
        _name(b"_HID", _integer(_PCI_HOST_BRIDGE)),
        _name(b"_UID", _integer(0)),
        _name(b"_ADR", _integer(0)),
        _name(b"_CRS", _buffer(_resources(ram_end))),
        _name(b"_PRT", _package(*(_route(slot) for slot in range(FIRST_SLOT, SLOTS)))),
    )
    return _SCOPE + _sized(b"\\_SB_" + _DEVICE + _sized(b"PCI0" + b"".join(names)))


def processors(cpus: int, mhz: Sequence[int]) -> bytes:
    """
    Return ``Scope (\\_SB)`` with a device for each vCPU and its P-states, which the CPU's own MSRs
    choose by number; b"" without any.

    :param mhz: the frequency of each P-state, in MHz, the fastest first.
    """
    if not mhz:
        return b""
    register = struct.pack("<BHBBBBQ", 0x82, 12, _FIXED_HARDWARE, 0, 0, 0, 0) + _END_TAG
    states = (
        _package(*map(_integer, (speed, 0, _LATENCY, _LATENCY, number, number)))
        for number, speed in enumerate(mhz)
    )
    shared = (
        _name(b"PCT_", _package(_buffer(register), _buffer(register))),
        _name(b"PSS_", _package(*states)),
    )
    devices = (_processor(number) for number in range(cpus))
    return _SCOPE + _sized(b"\\_SB_" + b"".join((*shared, *devices)))


def _processor(number: int) -> bytes:
    names = (
        _name(b"_HID", _STRING + b"ACPI0007\0"),
        _name(b"_UID", _integer(number)),
        _name(b"_PPC", _integer(0)),  # all states may be used
        *(
            _METHOD + _sized(b"_" + name + b"\0" + _RETURN + name + b"_")
            for name in (b"PCT", b"PSS")
        ),
    )
    return _DEVICE + _sized(b"C%03X" % number + b"".join(names))


def _resources(ram_end: int) -> bytes:
    """Return what it passes on, and the ports that it has itself."""
    return b"".join(
        (
            _words(_BUSES, 0, 0, 0),
            struct.pack("<BBHHBB", 0x47, 1, 0xCF8, 0xCF8, 1, 8),
            _words(_PORTS, _ENTIRE_RANGE, 0x0000, 0x0CF7),
            _words(_PORTS, _ENTIRE_RANGE, 0x0D00, 0xFFFF),
            _range(0x87, "I", _MEMORY, _READ_WRITE, ram_end, WINDOW_END - 1),
            _END_TAG,
        )
    )


def _words(kind: int, flags: int, first: int, last: int) -> bytes:
    return _range(0x88, "H", kind, flags, first, last)


def _range(tag: int, form: str, kind: int, flags: int, first: int, last: int) -> bytes:
    """Return an address space descriptor."""
    body = struct.pack(f"<BBB5{form}", kind, _FIXED, flags, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body


def _route(slot: int) -> bytes:
    """Return the line of INTA# of *slot*, wired to it for good."""
    return _package(_integer(slot << 16 | 0xFFFF), *map(_integer, (0, 0, intx_line(slot))))


def _name(name: bytes, value: bytes) -> bytes:
    return _NAME + name + value


def _package(*elements: bytes) -> bytes:
    return _PACKAGE + _sized(bytes((len(elements),)) + b"".join(elements))


def _buffer(data: bytes) -> bytes:
    return _BUFFER + _sized(_integer(len(data)) + data)


def _integer(value: int) -> bytes:
    """Return a constant, as a byte or a dword."""
    if value < 2:
        return bytes((value,))
    return struct.pack("<BB", 0x0A, value) if value < 1 << 8 else struct.pack("<BI", 0x0C, value)


def _sized(body: bytes) -> bytes:
    """Return *body* behind its length, which counts its own 1 to 3 bytes."""
    size = len(body) + 1
    if size < 1 << 6:
        return bytes((size,)) + body
    more = 1 if size + 1 < 1 << 12 else 2
    size += more
    return bytes((more << 6 | size & 0xF,)) + (size >> 4).to_bytes(more, "little") + body
