# SPDX-License-Identifier: Apache-2.0
"""
The virtual machine control block
---------------------------------

The guest's start state and what is intercepted, as AMD's SVM lays it out (APM volume 2, appendix
B), and the exit codes (appendix C).
"""

import struct
from dataclasses import dataclass, field
from typing import Final

__all__ = ("Exit", "SegmentState", "StartState", "build")

SIZE: Final = 0x1000
EXIT_INFO_2: Final = 0x80
_SAVE: Final = 0x400
_EVENT_VALID_EXCEPTION: Final = 1 << 31 | 3 << 8


class Exit:
    """Exit codes; the engine reports code + :data:`BASE`."""

    BASE: Final = 0x100
    CR8_READ: Final = 0x08
    CR4_WRITE: Final = 0x14
    CR8_WRITE: Final = 0x18
    DR_READ: Final = 0x20
    DR_WRITE: Final = 0x30
    EXCEPTION: Final = 0x40
    INTR: Final = 0x60
    NMI: Final = 0x61
    SMI: Final = 0x62
    RDTSC: Final = 0x6E
    RDPMC: Final = 0x6F
    CPUID: Final = 0x72
    SWINT: Final = 0x75
    PAUSE: Final = 0x77
    HLT: Final = 0x78
    MSR: Final = 0x7C
    SHUTDOWN: Final = 0x7F
    VMRUN: Final = 0x80
    VMMCALL: Final = 0x81
    SKINIT: Final = 0x86
    ICEBP: Final = 0x88
    MONITOR: Final = 0x8A
    MWAIT: Final = 0x8B


_INTERCEPTS: Final = (
    Exit.INTR, Exit.NMI, Exit.SMI, Exit.RDTSC, Exit.RDPMC, Exit.CPUID, Exit.SWINT, Exit.PAUSE,
    Exit.HLT, Exit.MSR, Exit.SHUTDOWN, *range(Exit.VMRUN, Exit.SKINIT + 1), Exit.ICEBP,
    Exit.MONITOR, Exit.MWAIT,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SegmentState:
    """A segment register; *attributes* are bits 55:52 and 47:40 of the descriptor, packed."""

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    attributes: int = 0x93


@dataclass(slots=True)
class StartState:
    """What a VMRUN loads."""

    es: SegmentState = field(default_factory=SegmentState)
    cs: SegmentState = field(default_factory=lambda: SegmentState(attributes=0x9B))
    ss: SegmentState = field(default_factory=SegmentState)
    ds: SegmentState = field(default_factory=SegmentState)
    gdt: tuple[int, int] = (0, 0xFFFF)
    idt: tuple[int, int] = (0, 0xFFFF)
    cr0: int = 0x10
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    rflags: int = 2
    rip: int = 0
    rsp: int = 0
    rax: int = 0
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400


def build(start: StartState, io_map: int, msr_map: int, stop_vector: int) -> bytes:
    """
    Return the VMCB that starts *start* and ends before its first instruction.

    It ends because an exception, *stop_vector*, is injected, and the engine reports it.

    :param io_map: guest-physical address of the I/O permission map.
    :param msr_map: of the MSR permission map.
    """
    area = bytearray(SIZE)
    intercepts = sum(1 << code - Exit.INTR for code in _INTERCEPTS)
    # CR4, because the engine takes reserved bits; CR8, because the LAPIC is ours; all DRs, because
    # one of the engine's own is used to stop after port accesses.
    struct.pack_into("<HHHHI", area, 0, 1 << 8, 1 << 8 | 1 << 4, 0xFF, 0xFF, 0xFFFF_FFFF)
    struct.pack_into("<Q", area, 0x0C, intercepts)
    struct.pack_into("<QQ", area, 0x40, io_map, msr_map)
    struct.pack_into("<IB", area, 0x58, 1, 1)  # ASID, flush the TLB
    struct.pack_into("<I", area, 0xA8, _EVENT_VALID_EXCEPTION | stop_vector)
    for offset, segment in ((0, start.es), (0x10, start.cs), (0x20, start.ss), (0x30, start.ds)):
        struct.pack_into(
            "<HHIQ", area, _SAVE + offset,
            segment.selector, segment.attributes, segment.limit, segment.base,
        )  # fmt: skip
    for offset, (base, limit) in ((0x60, start.gdt), (0x80, start.idt)):
        struct.pack_into("<HHIQ", area, _SAVE + offset, 0, 0, limit, base)
    for offset, value in (
        (0xD0, start.efer | 1 << 12), (0x148, start.cr4), (0x150, start.cr3), (0x158, start.cr0),
        (0x160, start.dr7), (0x168, start.dr6), (0x170, start.rflags), (0x178, start.rip),
        (0x1D8, start.rsp), (0x1F8, start.rax), (0x240, start.cr2),
    ):  # fmt: skip
        struct.pack_into("<Q", area, _SAVE + offset, value)
    return bytes(area)
