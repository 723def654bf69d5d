# SPDX-License-Identifier: Apache-2.0
"""
Registers in KVM's structures
-----------------------------

What KVM_GET/SET_REGS, SREGS and FPU mean for the engine.
"""

import struct
from typing import Any, Final

from kvmsr.abi import cpu as abi
from kvmsr.abi import size_of
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.cpu.state import CS, DS, ES, FS, GDT, GS, IDT, LDT, SS, TR, SegmentCache
from kvmsr.backend.soft.cpu.vmcb import SegmentState, StartState

__all__ = (
    "fpu_from_xsave",
    "get_fpu",
    "get_regs",
    "get_sregs",
    "set_fpu",
    "set_hidden",
    "set_regs",
    "set_sregs",
    "xsave_from_fpu",
)

_GPRS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
_SEGMENTS: Final = (
    ("cs", CS), ("ds", DS), ("es", ES), ("fs", FS), ("gs", GS), ("ss", SS), ("tr", TR),
    ("ldt", LDT),
)  # fmt: skip
_SVME: Final = 1 << 12
_BUSY_TSS: Final = 11


def get_regs(engine: Engine, regs: Any) -> None:
    """Fill *regs*, a struct kvm_regs."""
    values = engine.state.regs
    for number, name in enumerate(_GPRS):
        setattr(regs, name, values[number])
    regs.rflags = engine.rflags


def set_regs(engine: Engine, regs: Any) -> None:
    """Take over *regs*, a struct kvm_regs; bit 1 of RFLAGS is always set."""
    values = engine.state.regs
    for number, name in enumerate(_GPRS):
        values[number] = getattr(regs, name)
    engine.rflags = regs.rflags


def get_segment(cache: Any, segment: Any) -> None:
    """Fill *segment*, a struct kvm_segment, from the engine's segment *cache*."""
    flags = cache.flags
    segment.base = cache.base
    segment.limit = cache.limit
    segment.selector = cache.selector & 0xFFFF
    segment.type = flags >> 8 & 15
    segment.s = flags >> 12 & 1
    segment.dpl = flags >> 13 & 3
    segment.present = flags >> 15 & 1
    segment.avl = flags >> 20 & 1
    segment.l = flags >> 21 & 1
    segment.db = flags >> 22 & 1
    segment.g = flags >> 23 & 1
    segment.unusable = not segment.present
    segment.padding = 0


def _flags(segment: Any) -> int:
    if segment.unusable:
        return 0
    flags: int = (
        (segment.type & 15) << 8 | (segment.s & 1) << 12 | (segment.dpl & 3) << 13
        | (segment.present & 1) << 15 | (segment.avl & 1) << 20 | (segment.l & 1) << 21
        | (segment.db & 1) << 22 | (segment.g & 1) << 23
    )  # fmt: skip
    return flags


def _state(segment: Any) -> SegmentState:
    flags = _flags(segment)
    attributes = flags >> 8 & 0xFF | flags >> 12 & 0xF00
    return SegmentState(segment.selector, segment.base, segment.limit, attributes)


def get_sregs(engine: Engine, sregs: Any) -> None:
    """Fill segment, table and control registers of *sregs*, a struct kvm_sregs or kvm_sregs2."""
    state = engine.state
    for name, number in _SEGMENTS:
        get_segment(state.segments[number], getattr(sregs, name))
    for name, number in (("gdt", GDT), ("idt", IDT)):
        table = getattr(sregs, name)
        table.base, table.limit = state.segments[number].base, state.segments[number].limit & 0xFFFF
    sregs.cr0, sregs.cr2, sregs.cr3 = state.cr[0], state.cr[2], state.cr[3]
    sregs.cr4, sregs.efer = state.cr[4], state.efer.value & ~_SVME


def set_sregs(engine: Engine, sregs: Any) -> None:
    """Take over segment, table and control registers; they must be consistent."""
    state = engine.state
    kept = engine.rflags, state.regs[16], state.regs[4], state.regs[0]
    start = StartState(
        es=_state(sregs.es), cs=_state(sregs.cs), ss=_state(sregs.ss), ds=_state(sregs.ds),
        gdt=(sregs.gdt.base, sregs.gdt.limit), idt=(sregs.idt.base, sregs.idt.limit),
        cr0=sregs.cr0, cr2=sregs.cr2, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer,
        rflags=kept[0], rip=kept[1], rsp=kept[2], rax=kept[3],
    )  # fmt: skip
    shadow = engine.shadow
    engine.load(start)
    engine.shadow = shadow
    set_hidden(engine, sregs)
    # VMRUN takes RFLAGS without VM; V86 mode is a bit of it.
    engine.rflags = kept[0]


def set_hidden(engine: Engine, sregs: Any) -> None:
    """Take over the segments that a VMRUN leaves alone: FS, GS, LDTR and TR."""
    for name, number in _SEGMENTS:
        if number in (FS, GS, LDT, TR):
            _put(engine.state.segments[number], getattr(sregs, name))


def _put(cache: SegmentCache, segment: Any) -> None:
    cache.selector, cache.base, cache.limit = segment.selector, segment.base, segment.limit
    cache.flags = _flags(segment)


def get_fpu(engine: Engine, fpu: Any) -> None:
    """Fill *fpu*, a struct kvm_fpu."""
    read = engine.read_register
    top = read(engine.register("FPSW"), 2) >> 11 & 7
    for number in range(8):
        value = read(engine.register(f"FP{top + number & 7}"), 10)
        fpu.fpr[number][:] = value.to_bytes(16, "little")
    for number in range(16):
        fpu.xmm[number][:] = read(engine.register(f"XMM{number}"), 16).to_bytes(16, "little")
    fpu.fcw, fpu.fsw, fpu.mxcsr = (
        read(engine.register("FPCW"), 2),
        read(engine.register("FPSW"), 2),
        read(engine.register("MXCSR"), 4),
    )
    tags = read(engine.register("FPTAG"), 2)
    fpu.ftwx = sum(1 << number for number in range(8) if tags >> 2 * number & 3 != 3)


def set_fpu(engine: Engine, fpu: Any) -> None:
    """Take over *fpu*, a struct kvm_fpu."""
    write = engine.write_register
    write(engine.register("FPSW"), fpu.fsw)
    write(engine.register("FPCW"), fpu.fcw)
    write(engine.register("FPTAG"), sum((0 if fpu.ftwx >> n & 1 else 3) << 2 * n for n in range(8)))
    for number in range(8):
        value = int.from_bytes(bytes(fpu.fpr[number])[:10], "little")
        write(engine.register(f"FP{(fpu.fsw >> 11) + number & 7}"), value)
    for number in range(16):
        write(engine.register(f"XMM{number}"), int.from_bytes(bytes(fpu.xmm[number]), "little"))
    write(engine.register("MXCSR"), fpu.mxcsr)


_XSTATE_BV: Final = 512
_X87_SSE: Final = 3


def xsave_from_fpu(fpu: Any) -> bytes:
    """Return an XSAVE area with the state of *fpu* (SDM volume 1, 13.4)."""
    area = bytearray(size_of(abi.Xsave))
    struct.pack_into("<HHBxHQQII", area, 0, fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode,
                     fpu.last_ip, fpu.last_dp, fpu.mxcsr, 0xFFFF)  # fmt: skip
    area[32:160] = b"".join(bytes(register) for register in fpu.fpr)
    area[160:416] = b"".join(bytes(register) for register in fpu.xmm)
    struct.pack_into("<Q", area, _XSTATE_BV, _X87_SSE)
    return bytes(area)


def fpu_from_xsave(area: bytes) -> Any:
    """Return the struct kvm_fpu of an XSAVE area; what its header leaves out is as after reset."""
    fpu = abi.Fpu(fcw=0x37F, mxcsr=0x1F80)
    (present,) = struct.unpack_from("<Q", area, _XSTATE_BV)
    if present & 1:
        fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp = struct.unpack_from(
            "<HHBxHQQ", area
        )
        for number in range(8):
            fpu.fpr[number][:] = area[32 + 16 * number : 48 + 16 * number]
    if present & 2:
        (fpu.mxcsr,) = struct.unpack_from("<I", area, 24)
        for number in range(16):
            fpu.xmm[number][:] = area[160 + 16 * number : 176 + 16 * number]
    return fpu
