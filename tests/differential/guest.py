# SPDX-License-Identifier: Apache-2.0
"""
Guests of scenarios
-------------------

Tables, exception handlers and code for each mode. Every instruction of a scenario becomes a block:
note where to go on after a fault, load the operands, execute it, and write EAX and EDX to the log.
A handler tells user space which exception it is, by a port, and goes on behind the instruction.

Memory, the same in each mode::

    0x0000  free: what is written to low addresses does no harm
    0x1000  code                       0x8000  stack of CPL 0, downwards from 0x9000
    0x2000  PML4, PDPT, PD             0xa000  stack of CPL 3, downwards
    0x5000  GDT                        0xb000  log, 8 bytes an instruction
    0x5800  TSS                        0xb800  where to go on
    0x6000  IDT, or real mode's IVT    0xd000  free
    0x7000  handlers, 32 bytes each
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.abi import cpu
from kvmsr.backend import Memory
from tests.differential.scenario import Call

__all__ = (
    "END_PORT", "FREE", "LOG", "MEMORY", "OBSERVED", "Block", "assemble", "fill", "set_mode",
    "start",
)  # fmt: skip

MEMORY: Final = 1 << 20
CODE: Final = 0x1000
LOG: Final = 0xB000
FREE: Final = 0xD000
OBSERVED: Final = (slice(0x8F00, 0x9000), slice(0x9F00, 0xA000), slice(0xB000, 0xC000))
"""The stacks and the log."""
END_PORT: Final = 0xE9
FAULT_PORT: Final = 0xEE

_PML4, _PDPT, _PD, _GDT, _TSS, _IDT, _HANDLERS = (
    0x2000,
    0x3000,
    0x4000,
    0x5000,
    0x5800,
    0x6000,
    0x7000,
)
_STACK, _USER_STACK, _RESUME = 0x9000, 0xA000, 0xB800
_VECTORS: Final = 0x30
_TRAPS: Final = (1, 2, 3, 4)
"""Exceptions and interrupts that go on where they say themselves; interrupts do, too."""
_WITH_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
_KERNEL_CS64, _SS, _USER_SS, _USER_CS, _TR, _KERNEL_CS32 = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x38
_IOPL3: Final = 3 << 12
_WIDE: Final = ("long", "user")


@dataclass(frozen=True)
class Block:
    """
    The code of one instruction.

    :ivar after: the address behind the instruction itself; the log is written from here.
    """

    call: Call
    start: int
    after: int
    end: int


# Code


def _store(mode: str, address: int, register: int) -> bytes:
    """Encode mov of a 32-bit register to memory."""
    if mode in _WIDE:
        return bytes((0x89, 0x04 | register << 3, 0x25)) + address.to_bytes(4, "little")
    if mode == "protected":
        return bytes((0x89, 0x05 | register << 3)) + address.to_bytes(4, "little")
    return bytes((0x66, 0x89, 0x06 | register << 3)) + address.to_bytes(2, "little")


def _note(mode: str, value: int) -> bytes:
    """Encode mov of *value* to the place of where to go on."""
    if mode in _WIDE:
        return b"\xc7\x04\x25" + struct.pack("<II", _RESUME, value)
    if mode == "protected":
        return b"\xc7\x05" + struct.pack("<II", _RESUME, value)
    return b"\xc7\x06" + struct.pack("<HH", _RESUME, value)


def _load(mode: str, register: int, value: int) -> bytes:
    prefix = b"\x66" if mode == "real" else b""
    return prefix + bytes((0xB8 + register,)) + (value & 0xFFFF_FFFF).to_bytes(4, "little")


def _parts(mode: str, call: Call) -> tuple[bytes, bytes]:
    """Return the code that loads an instruction's operands, and the instruction."""
    name, *arguments = call
    wide = b"\x66" if mode == "real" else b""
    match name:
        case "rdmsr":
            index, prefix = arguments
            operands = _load(mode, 1, index) + _load(mode, 0, 0x5A5A_0001) + _load(mode, 2, 7)
            return operands, bytes(prefix) + b"\x0f\x32"
        case "wrmsr":
            index, value, prefix = arguments
            operands = _load(mode, 1, index) + _load(mode, 0, value) + _load(mode, 2, value >> 32)
            return operands, bytes(prefix) + b"\x0f\x30"
        case "out":
            return _load(mode, 0, 0x1234_5678), bytes((0xE6, arguments[0]))
        case "outl":
            return _load(mode, 0, 0x1234_5678), wide + bytes((0xE7, arguments[0]))
        case "in":
            return _load(mode, 0, 0x1234_5678), bytes((0xE4, arguments[0]))
        case "cpuid":
            return _load(mode, 0, arguments[0]) + _load(mode, 1, 0), b"\x0f\xa2"
        case "hlt":
            return b"", b"\xf4"
        case "cli":
            return b"", b"\xfa"
        case "sti":
            return b"", b"\xfb"
        case "nop":
            return b"", b"\x90"
    raise ValueError(call)


def assemble(mode: str, program: tuple[Call, ...]) -> tuple[bytes, list[Block]]:
    """Return the code at ``CODE`` and where each instruction is in it."""
    code, blocks = b"", []
    for number, call in enumerate((*program, ("out", END_PORT))):
        operands, instruction = _parts(mode, call)
        start = CODE + len(code)
        size = len(_note(mode, 0)) + len(operands) + len(instruction)
        after = start + size
        code += _note(mode, after) + operands + instruction
        code += _store(mode, LOG + 8 * number, 0) + _store(mode, LOG + 8 * number + 4, 2)
        code += _load(mode, 0, 0) + _load(mode, 2, 0)  # what was read may be the time
        blocks.append(Block(call, start, after, CODE + len(code)))
    back = blocks[-1].start - (CODE + len(code) + 2)  # where it may not end, it tries again
    return code + bytes((0xEB, back & 0xFF)), blocks


def _handler(mode: str, vector: int) -> bytes:
    code = bytes((0xE6, FAULT_PORT))
    if vector in _WITH_CODE and mode != "real":
        code += b"\x48\x83\xc4\x08" if mode in _WIDE else b"\x83\xc4\x04"
    if vector not in _TRAPS and vector < 32:
        if mode in _WIDE:
            code += b"\xff\x34\x25" + _RESUME.to_bytes(4, "little") + b"\x8f\x04\x24"
        elif mode == "protected":
            code += b"\xff\x35" + _RESUME.to_bytes(4, "little") + b"\x8f\x04\x24"
        else:  # pop (%esp)
            code += b"\xff\x36" + _RESUME.to_bytes(2, "little") + b"\x67\x8f\x04\x24"
    if mode == "protected":  # without IRET, which KVM's emulator lacks: push flags, popf, ret 8
        return code + b"\xff\x74\x24\x08\x9d\xc2\x08\x00"
    return code + (b"\x48\xcf" if mode in _WIDE else b"\xcf")


def fill(memory: Memory, mode: str, code: bytes) -> None:
    """Put tables, handlers and code into a guest's memory."""

    def put(address: int, data: bytes) -> None:
        memory.view[address : address + len(data)] = data

    put(CODE, code)
    for vector in range(_VECTORS):
        where = _HANDLERS + 32 * vector
        put(where, _handler(mode, vector))
        if mode in _WIDE:
            gate = struct.pack("<HHBBHQ", where, _KERNEL_CS64, 0, 0x8E, 0, 0)
        elif mode == "protected":
            gate = struct.pack("<HHBBH", where, _KERNEL_CS32, 0, 0x8E, 0)
        else:
            gate = struct.pack("<HH", where, 0)
        put(_IDT + len(gate) * vector, gate)
    present, writable, user, large = 1, 2, 4, 0x80
    flags = present | writable | user
    put(_PML4, struct.pack("<Q", _PDPT | flags))
    put(_PDPT, struct.pack("<Q", _PD | flags))
    put(_PD, struct.pack("<Q", flags | large))
    # Null, code and data of CPL 0, data and code of CPL 3, the TSS in two parts, 32-bit code.
    code64, data, user_data, user_code, code32 = (
        0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF,
        0x00CF9B000000FFFF,
    )  # fmt: skip
    tss = 0x67 | _TSS << 16 | 0x8B << 40
    put(_GDT, struct.pack("<8Q", 0, code64, data, user_data, user_code, tss, 0, code32))
    put(_TSS + 4, struct.pack("<Q", _STACK))
    put(_RESUME, struct.pack("<Q", CODE))


# Registers


def _segment(selector: int, type_: int, *, dpl: int = 0, long: bool = False) -> cpu.Segment:
    return cpu.Segment(
        selector=selector, limit=0xFFFF_FFFF, type=type_, present=1, dpl=dpl, s=1, g=1,
        l=int(long), db=int(not long),
    )  # fmt: skip


def set_mode(sregs: Any, mode: str) -> None:
    """Change a vCPU's *sregs* after reset into those of *mode*."""
    sregs.idt.base = _IDT
    if mode == "real":
        sregs.cs.base = sregs.cs.selector = 0
        sregs.idt.limit = 4 * _VECTORS - 1
        return
    dpl = 3 if mode == "user" else 0
    selector = {"user": _USER_CS, "long": _KERNEL_CS64, "protected": _KERNEL_CS32}[mode]
    sregs.cs = _segment(selector, 0xB, dpl=dpl, long=mode in _WIDE)
    data = _segment(_USER_SS if dpl else _SS, 0x3, dpl=dpl)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.tr = cpu.Segment(base=_TSS, limit=0x67, selector=_TR, type=0xB, present=1)
    sregs.gdt.base, sregs.gdt.limit = _GDT, 8 * 8 - 1
    if mode == "protected":
        sregs.idt.limit = 8 * _VECTORS - 1
        sregs.cr0 = 0x33  # NE, ET, MP, PE
        return
    sregs.idt.limit = 16 * _VECTORS - 1
    sregs.cr3, sregs.cr4 = _PML4, 1 << 5  # PAE
    sregs.cr0 = 0x8005_0033  # PG, AM, WP, NE, ET, MP, PE
    sregs.efer = 0x501  # LMA, LME, SCE


def start(mode: str) -> cpu.Regs:
    """Return the registers to begin with: full of bits that must not get lost or in the way."""
    upper = 0xABCD_0000_0000_0000 if mode in _WIDE else 0
    stack = _USER_STACK if mode == "user" else _STACK
    values = {name: upper | number for number, name in enumerate(_GPRS, 1)}
    rflags = 2 | (_IOPL3 if mode == "user" else 0)
    return cpu.Regs(**values, rip=CODE, rsp=stack, rflags=rflags)


_GPRS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r12", "r15")
