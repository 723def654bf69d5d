# SPDX-License-Identifier: Apache-2.0
"""
Guests
------

Small guests: memory with tables and exception handlers, and a vCPU that runs a few bytes of code.

Each run ends at a port: 0xe9 (the code came to its end) or 0xee (an exception handler was
entered). The handlers touch no register: the vector is known by which of them stopped, and the
frame is read off the stack. So what an item sees in registers is what the instruction left there.

Memory, the same in each mode::

    0x0000  IVT (real mode)            0x5000  GDT
    0x1000  code                       0x5800  TSS
    0x2000  PML4, PDPT, PD             0x6000  IDT (64-bit mode)
    0x9000  stack of CPL 0, downwards  0x7000  handlers, 16 bytes each
    0xa000  stack of CPL 3, downwards  0xb000  free
"""

import struct
from typing import Final

from kvmsr.abi import cpu
from kvmsr.backend import Memory
from kvmsr.kvm import Vcpu
from tests.conformance import code

MODES: Final = ("real", "long")

CODE: Final = 0x1000
ELSEWHERE: Final = 0x1100
FREE: Final = 0xB000
MEMORY: Final = 2 << 20

_PML4, _PDPT, _PD = 0x2000, 0x3000, 0x4000
_GDT, _TSS, _IDT = 0x5000, 0x5800, 0x6000
_HANDLERS = 0x7000
_STACK, _USER_STACK = 0x9000, 0xA000
_VECTORS = 0x40

KERNEL_CS, KERNEL_SS, USER_SS, USER_CS, _TR = 0x08, 0x10, 0x1B, 0x23, 0x28

CR0_PE, CR0_PG = 1, 1 << 31
EFER_SCE, EFER_LME, EFER_LMA = 1, 1 << 8, 1 << 10
_IOPL3 = 3 << 12
_WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17, 21}


def handler(vector: int) -> int:
    """Return the address of a vector's handler."""
    return _HANDLERS + 16 * vector


def vector_of(rip: int) -> int:
    """Return whose handler *rip* is in."""
    return (rip - _HANDLERS) // 16


def prepare_memory(memory: Memory) -> None:
    """Put tables and handlers for all modes into a guest's memory."""

    def put(address: int, data: bytes) -> None:
        memory.view[address : address + len(data)] = data

    for vector in range(_VECTORS):
        where = handler(vector)
        put(where, code.FAULT)
        put(4 * vector, struct.pack("<HH", where, 0))
        put(_IDT + 16 * vector, struct.pack("<HHBBHQ", where, KERNEL_CS, 0, 0x8E, 0, 0))
    present, writable, user, large = 1, 2, 4, 0x80
    flags = present | writable | user
    put(_PML4, struct.pack("<Q", _PDPT | flags))
    put(_PDPT, struct.pack("<Q", _PD | flags))
    put(_PD, struct.pack("<Q", flags | large))
    # Null, code and data of CPL 0, data and code of CPL 3, and the TSS in two parts.
    segments = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
    tss = 0x67 | _TSS << 16 | 0x8B << 40
    put(_GDT, struct.pack("<7Q", *segments, tss, 0))
    put(_TSS + 4, struct.pack("<Q", _STACK))


def _segment(selector: int, type_: int, *, dpl: int = 0, long: bool = False) -> cpu.Segment:
    return cpu.Segment(
        selector=selector, limit=0xFFFFFFFF, type=type_, present=1, dpl=dpl, s=1, g=1,
        l=int(long), db=int(not long),
    )  # fmt: skip


def enter_real_mode(vcpu: Vcpu) -> None:
    """Let *vcpu* run real-mode code in the first 64 KiB."""
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)


def enter_long_mode(vcpu: Vcpu, *, user: bool = False) -> None:
    """Let *vcpu* run 64-bit code in the first 2 MiB, at CPL 0 or 3."""
    sregs = vcpu.get_sregs()
    dpl = 3 if user else 0
    sregs.cs = _segment(USER_CS if user else KERNEL_CS, 0xB, dpl=dpl, long=True)
    data = _segment(USER_SS if user else KERNEL_SS, 0x3, dpl=dpl)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.tr = cpu.Segment(base=_TSS, limit=0x67, selector=_TR, type=0xB, present=1)
    sregs.gdt.base, sregs.gdt.limit = _GDT, 7 * 8 - 1
    sregs.idt.base, sregs.idt.limit = _IDT, 16 * _VECTORS - 1
    sregs.cr3 = _PML4
    sregs.cr4 = 1 << 5  # PAE
    sregs.cr0 = 0x80050033  # PG, AM, WP, NE, ET, MP, PE
    sregs.efer = EFER_LMA | EFER_LME | EFER_SCE
    vcpu.set_sregs(sregs)


def start_registers(mode: str, rip: int, values: dict[str, int]) -> cpu.Regs:
    """Return the registers to start code at *rip* with; *values* by name go before the usual."""
    stack = _USER_STACK if mode == "user" else _STACK
    usual = {"rip": rip, "rsp": stack, "rflags": 2 | (_IOPL3 if mode == "user" else 0)}
    return cpu.Regs(**(usual | values))


def frame(mode: str, memory: Memory, vector: int, rsp: int) -> tuple[int, int, int]:
    """Return error code (0 where there is none), RIP and RFLAGS of an exception frame at *rsp*."""
    if mode == "real":
        ip, _, flags = struct.unpack_from("<3H", memory.view, rsp & 0xFFFF)
        return 0, ip, flags
    error_code = 0
    if vector in _WITH_ERROR_CODE:
        (error_code,) = struct.unpack_from("<Q", memory.view, rsp)
        rsp += 8
    rip, _, rflags = struct.unpack_from("<3Q", memory.view, rsp)
    return error_code, rip, rflags
