# SPDX-License-Identifier: Apache-2.0
"""
ACPI tables
-----------

The tables from which an operating system learns about interrupt controllers, power-off, the PM
timer and the PCI bus: RSDP, XSDT, FADT, FACS, MADT and DSDT. Source: ACPI 6.5, chapter 5.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvmsr.machine.aml import pci_root, processors, sleep_off
from kvmsr.machine.board.small import AcpiPm

__all__ = ("ALIGNMENT", "CHECKSUM", "About", "Tables", "build_tables", "rsdp")

ALIGNMENT: Final = 64
"""What all tables are aligned to: the FACS requires it."""

_OEM: Final = (b"KVMSR ", b"KVMSR   ", b"KVSR")
_LAPIC: Final = 0xFEE00000
_IOAPIC: Final = 0xFEC00000
_SCI: Final = 9

_SYSTEM_IO: Final = 1
_DWORD: Final = 3
_WORD: Final = 2
_BYTE: Final = 1

_FADT_SIZE: Final = 276  # revision 6
_LEGACY_DEVICES: Final = 1
_FLAGS: Final = (
    1 << 0  # WBINVD works
    | 1 << 2  # C1 works on all processors
    | 1 << 4  # no power button
    | 1 << 5  # no sleep button
    | 1 << 10  # there is a reset register
)


_RSDP_SIZE: Final = 36
CHECKSUM: Final = 9
"""The offset of the checksum in every table but RSDP and FACS."""


@dataclass(frozen=True, slots=True)
class About:
    """
    What the tables are about.

    :ivar cpus: the number of vCPUs; their APIC IDs count from 0.
    :ivar ram_end: the end of RAM below 4 GiB.
    :ivar ports: the first of the power management's ports.
    :ivar mhz: the frequencies of the P-states that MSRs choose, if there are any.
    """

    cpus: int
    ram_end: int
    ports: int = AcpiPm.BASE
    mhz: Sequence[int] = ()


class Tables:
    """
    The tables, except the RSDP.

    :param base: the guest-physical address where they will be placed.
    :ivar image: the tables, one behind the other.
    :ivar xsdt: the offset of the XSDT.
    :ivar pointers: offset and size of each pointer to another table.
    :ivar summed: offset and size of each table with a checksum.
    """

    def __init__(self, base: int, about: About) -> None:
        self.image = bytearray()
        self.pointers: list[tuple[int, int]] = []
        self.summed: list[tuple[int, int]] = []
        self._base = base
        facs = self._place(_facs())
        aml = sleep_off(AcpiPm.OFF) + pci_root(about.ram_end) + processors(about.cpus, about.mhz)
        dsdt = self._place(_sdt(b"DSDT", 2, aml), summed=True)
        fadt = self._place(
            _fadt(base + facs, base + dsdt, about.ports),
            (36, 4), (40, 4), (132, 8), (140, 8), summed=True,
        )  # fmt: skip
        madt = self._place(_madt(about.cpus), summed=True)
        roots = struct.pack("<QQ", base + fadt, base + madt)
        self.xsdt = self._place(_sdt(b"XSDT", 1, roots), (36, 8), (44, 8), summed=True)

    def _place(self, table: bytes, *pointers: tuple[int, int], summed: bool = False) -> int:
        """Add a table with *pointers* at these offsets and of these sizes; return its offset."""
        self.image.extend(b"\0" * (-len(self.image) % ALIGNMENT))
        at = len(self.image)
        self.image.extend(table)
        self.pointers += [(at + offset, size) for offset, size in pointers]
        self.summed += [(at, len(table))] if summed else []
        return at


def build_tables(base: int, about: About) -> bytes:
    """
    Return the tables, the RSDP first.

    :param base: the guest-physical address where they will be placed.
    """
    first = _RSDP_SIZE + -_RSDP_SIZE % ALIGNMENT
    tables = Tables(base + first, about)
    return rsdp(base + first + tables.xsdt).ljust(first, b"\0") + bytes(tables.image)


def rsdp(xsdt: int) -> bytes:
    """Return the RSDP, which points to the XSDT."""
    form = "<8sB6sBIIQB3x"
    table = bytearray(struct.pack(form, b"RSD PTR ", 0, _OEM[0], 2, 0, _RSDP_SIZE, xsdt, 0))
    table[8] = -sum(table[:20]) & 0xFF
    table[32] = -sum(table) & 0xFF
    return bytes(table)


def _sdt(signature: bytes, revision: int, body: bytes) -> bytes:
    head = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, *_OEM[:2], 1, _OEM[2], 1
    )
    table = bytearray(head + body)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def _facs() -> bytes:
    return struct.pack("<4sI24xB31x", b"FACS", 64, 2)


def _register(bits: int, access: int, address: int) -> bytes:
    """Return a generic address structure in port space."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, bits, 0, access, address)


def _fadt(facs: int, dsdt: int, ports: int) -> bytes:
    table = bytearray(_FADT_SIZE)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into(f"<{form}", table, offset, *values)

    put(36, "II", facs, dsdt)
    put(46, "H", _SCI)
    put(56, "I", ports)
    put(64, "I", ports + AcpiPm.CONTROL)
    put(76, "I", ports + AcpiPm.TIMER)
    put(88, "BB", 4, 2)  # lengths of the PM1 event and control blocks
    put(91, "B", 4)  # length of the PM timer block
    put(96, "HH", 0xFFF, 0xFFF)  # no C2, no C3
    put(108, "B", 0x32)  # CMOS index of the century
    put(109, "H", _LEGACY_DEVICES)
    put(112, "I", _FLAGS)
    put(116, "12s", _register(8, _BYTE, 0xCF9))
    put(128, "B", 6)  # the value that resets
    put(131, "B", 5)  # revision 6.5
    put(132, "QQ", facs, dsdt)
    put(148, "12s", _register(32, _WORD, ports))
    put(172, "12s", _register(16, _WORD, ports + AcpiPm.CONTROL))
    put(208, "12s", _register(32, _DWORD, ports + AcpiPm.TIMER))
    return _sdt(b"FACP", 6, bytes(table[36:]))


def _madt(cpus: int) -> bytes:
    body = struct.pack("<II", _LAPIC, 1)  # PC-compatible: there are 8259s, too
    for cpu in range(cpus):
        if cpu < 255:
            body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)
        else:
            body += struct.pack("<BBHIII", 9, 16, 0, cpu, 1, cpu)  # x2APIC
    body += struct.pack("<BBBBII", 1, 12, 0, 0, _IOAPIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # the timer is on pin 2
    body += struct.pack("<BBBBIH", 2, 10, 0, _SCI, _SCI, 0xD)  # level, active high
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI on LINT1
    return _sdt(b"APIC", 4, body)
