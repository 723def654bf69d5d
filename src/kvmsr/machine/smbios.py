# SPDX-License-Identifier: Apache-2.0
"""
SMBIOS
------

The structures in which an operating system finds what the machine is: firmware, system, processor
and memory. What this machine does not have is left out or said to be unknown. Source: DMTF DSP0134
3.6, System Management BIOS Reference Specification.
"""

import struct
from typing import Final

from kvmsr._version import __version__
from kvmsr.kvm import CpuidTable

__all__ = ("build_structures", "entry_point")

_VERSION: Final = (3, 0)
_LENGTH: Final = 24
_MAKER: Final = "kvmsr"
_DATE: Final = "01/01/2026"
"""Of these tables. Without a date, Linux takes a firmware for one from before ACPI."""

_NONE: Final = 0xFFFF
_NO_ERRORS_REPORTED: Final = 0xFFFE
_UNKNOWN_WIDTH: Final = 0xFFFF
_FIRMWARE, _SYSTEM, _PROCESSOR, _ARRAY, _MEMORY, _BOOT, _END = (
    0x0000, 0x0100, 0x0400, 0x1000, 0x1100, 0x2000, 0x7F00,
)  # fmt: skip
"""Handles."""


def entry_point(address: int, structures: bytes) -> bytes:
    """
    Return the 64-bit entry point, which lies at a multiple of 16 from 0xf0000 to 0xfffff.

    :param address: where *structures* lie.
    """
    point = bytearray(
        struct.pack(
            "<5sBBBBBBBIQ", b"_SM3_", 0, _LENGTH, *_VERSION, 0, 1, 0, len(structures), address
        )
    )
    point[5] = -sum(point) & 0xFF
    return bytes(point)


def build_structures(memory: int, cpus: int, cpuid: CpuidTable, *, firmware: bool) -> bytes:
    """
    Return the structures, the end-of-table one last.

    :param memory: bytes of RAM.
    :param cpus: the number of vCPUs, which are the cores of one processor.
    :param cpuid: CPUID of the first one.
    :param firmware: whether kvmsr is the firmware. A firmware image adds a structure about itself.
    """
    parts = [_firmware()] if firmware else []
    parts += [_system(), _processor(cpus, cpuid), _array(memory), _device(memory)]
    parts.append(_structure(32, _BOOT, bytes(6) + b"\0"))  # no errors detected
    parts.append(_structure(127, _END, b""))
    return b"".join(parts)


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """Return a structure; *body* refers to *strings* by numbers from 1."""
    head = struct.pack("<BBH", kind, 4 + len(body), handle)
    text = b"".join(string.encode("ascii", "replace") + b"\0" for string in strings)
    return head + body + (text or b"\0") + b"\0"


def _firmware() -> bytes:
    major, minor = map(int, __version__.split(".")[:2])
    body = struct.pack(
        "<BBHBBQBBBBBB",
        1,  # vendor
        2,  # version
        0xE000,  # segment
        3,  # date
        1,  # 128 KiB
        1 << 3,  # no characteristics
        0,
        1 << 4,  # these are the tables of a virtual machine
        major,
        minor,
        0xFF,  # there is no embedded controller
        0xFF,
    )
    return _structure(0, _FIRMWARE, body, _MAKER, __version__, _DATE)


def _system() -> bytes:
    no_uuid = bytes(16)
    powered_on = 6
    body = struct.pack("<BBBB16sBBB", 1, 2, 3, 0, no_uuid, powered_on, 0, 0)
    return _structure(1, _SYSTEM, body, _MAKER, "machine", __version__)


def _processor(cpus: int, cpuid: CpuidTable) -> bytes:
    signature, features = 0, 0
    vendor = brand = b""
    for entry in cpuid:
        if entry.function == 0:
            vendor = struct.pack("<III", entry.ebx, entry.edx, entry.ecx)
        elif entry.function == 1:
            signature, features = entry.eax, entry.edx
        elif 0x80000002 <= entry.function <= 0x80000004:
            brand += struct.pack("<IIII", entry.eax, entry.ebx, entry.ecx, entry.edx)
    wide = 1 << 2  # 64-bit capable
    several = 1 << 3 if cpus > 1 else 0
    body = struct.pack(
        "<BBBBIIBBHHHBBHHHBBBBBBHHHHH",
        1,  # socket
        3,  # a central processor
        0xFE,  # the family is in the word below
        2,  # manufacturer
        signature,
        features,
        3,  # version
        0,  # voltage, clocks and speeds are unknown
        0,
        0,
        0,
        0x41,  # populated and enabled
        6,  # no socket to upgrade
        _NONE,
        _NONE,
        _NONE,
        0,
        0,
        0,
        min(cpus, 0xFF),  # cores
        min(cpus, 0xFF),
        min(cpus, 0xFF),  # threads
        wide | several,
        2,  # family unknown
        cpus,
        cpus,
        cpus,
    )
    words = [text.decode("ascii", "replace").strip(" \0") for text in (vendor, brand)]
    return _structure(4, _PROCESSOR, body, "CPU 0", *(word or "unknown" for word in words))


def _array(memory: int) -> bytes:
    kib = memory >> 10
    fits = kib < 0x80000000
    body = struct.pack(
        "<BBBIHHQ",
        1,  # other than on a board
        3,  # system memory
        3,  # no error correction
        kib if fits else 0x80000000,
        _NO_ERRORS_REPORTED,
        1,
        0 if fits else memory,
    )
    return _structure(16, _ARRAY, body)


def _device(memory: int) -> bytes:
    mib = memory >> 20
    fits = mib < 0x7FFF
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBIHHHH",
        _ARRAY,
        _NO_ERRORS_REPORTED,
        _UNKNOWN_WIDTH,
        _UNKNOWN_WIDTH,
        mib if fits else 0x7FFF,
        1,  # form factor: other
        0,  # no set
        1,  # locator
        0,
        7,  # RAM
        1 << 1,  # detail: other
        0,  # the speed is unknown
        2,  # manufacturer
        0,
        0,
        0,
        0,
        0 if fits else mib,
        0,  # clock and voltages are unknown
        0,
        0,
        0,
    )
    return _structure(17, _MEMORY, body, "RAM", _MAKER)
