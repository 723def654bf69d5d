# SPDX-License-Identifier: Apache-2.0
"""
Exception delivery
------------------

The engine reports exceptions instead of delivering them, so they are delivered from here: through
QEMU's own function, which is in the library.

That function expects to be left by a longjmp where the delivery itself faults (a gate that is not
there, a stack that cannot be written), and from here that jump would cross Python. So what it is
going to read and write is checked first, and a delivery that would fault becomes the exception
that the manual says: a second one, a double fault, or shutdown (SDM volume 3, 6.15, table 6-5).
"""

import struct
from typing import Final

from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.cpu.state import GDT, IDT, LDT, TR

__all__ = ("deliver", "interrupt")

DE, DB, BP, UD, DF, TS, NP, SS, GP, PF, AC = 0, 1, 3, 6, 8, 10, 11, 12, 13, 14, 17
_WITH_CODE: Final = frozenset({DF, TS, NP, SS, GP, PF, AC})
_CONTRIBUTORY: Final = frozenset({DE, TS, NP, SS, GP})
_TRAPS: Final = frozenset({DB, BP, 4, DF})
"""Vectors whose saved RFLAGS has no RF: the instruction before is over (SDM volume 3, 17.3.1.1)."""

_RF: Final = 1 << 16
_VM: Final = 1 << 17
_LMA: Final = 1 << 10
_FRAME: Final = 56


class _Fault(Exception):
    """Delivering raises an exception of its own."""

    def __init__(self, vector: int, code: int = 0, address: int = 0) -> None:
        super().__init__(vector)
        self.vector, self.code, self.address = vector, code, address


def interrupt(engine: Engine, vector: int) -> bool:
    """Deliver a hardware interrupt or NMI; returns as :func:`deliver`."""
    return _deliver(engine, vector, 0, hardware=True)


def deliver(
    engine: Engine, vector: int, error_code: int = 0, *, software: bool = False, next_rip: int = 0,
    resume: bool = True,
) -> bool:  # fmt: skip
    """
    Deliver an exception or a software interrupt to the guest.

    :param error_code: what is pushed, for the vectors that push one.
    :param software: it is INT n, INT3 or INTO, and returns to *next_rip*.
    :param resume: the saved RFLAGS of a fault has RF; otherwise it is as it is.
    :return: False where the guest is beyond help: it has shut down (a triple fault).
    """
    return _deliver(engine, vector, error_code, software=software, next_rip=next_rip, resume=resume)


def _deliver(
    engine: Engine, vector: int, error_code: int, *, software: bool = False, next_rip: int = 0,
    hardware: bool = False, resume: bool = True,
) -> bool:  # fmt: skip
    while True:
        try:
            cpl = engine.cpl
            with engine.as_supervisor():
                _check(engine, vector, software, cpl)
        except _Fault as fault:
            if vector == DF and not hardware:
                return False
            second = fault.vector
            double = not hardware and (
                (vector == PF and (second == PF or second in _CONTRIBUTORY))
                or (vector in _CONTRIBUTORY and second in _CONTRIBUTORY)
            )
            if second == PF and not double:
                engine.state.cr[2] = fault.address
            vector, error_code = (DF, 0) if double else (second, fault.code)
            software = hardware = False
            continue
        engine.shadow = False
        if hardware:
            engine.hardware_interrupt(vector)
        else:
            if resume and not software and vector not in _TRAPS:
                engine.state.eflags.value |= _RF
            _push(engine, vector, error_code, software, next_rip)
        return True


def _push(engine: Engine, vector: int, error_code: int, software: bool, next_rip: int) -> None:
    state = engine.state
    state.exception_index.value = vector
    state.error_code.value = error_code
    state.exception_is_int.value = int(software)
    state.exception_next_eip.value = next_rip
    engine.do_interrupt()
    state.exception_index.value = -1
    state.exception_is_int.value = 0
    state.eflags.value &= ~_RF


def _check(engine: Engine, vector: int, software: bool, cpl: int) -> None:
    state = engine.state
    if not state.cr[0] & 1:
        if vector * 4 + 3 > state.segments[IDT].limit:
            raise _Fault(GP)
        return
    long_mode = bool(state.efer.value & _LMA)
    size = 16 if long_mode else 8
    selector_code = vector * 8 + 2
    if vector * size + size - 1 > state.segments[IDT].limit:
        raise _Fault(GP, selector_code)
    gate = _read(engine, state.segments[IDT].base + vector * size, size)
    kind, dpl, present = gate[5] & 15, gate[5] >> 5 & 3, gate[5] & 0x80
    if kind == 5 and not long_mode:
        return  # a task gate: the engine switches tasks
    if kind not in ((14, 15) if long_mode else (6, 7, 14, 15)):
        raise _Fault(GP, selector_code)
    if software and dpl < cpl:
        raise _Fault(GP, selector_code)
    if not present:
        raise _Fault(NP, selector_code)
    selector: int = struct.unpack_from("<H", gate, 2)[0]
    target_dpl = _check_code(engine, selector, cpl, long_mode)
    stack_table = gate[4] & 7 if long_mode else 0
    _check_stack(engine, target_dpl, cpl, long_mode, stack_table, kind >= 14)


def _check_code(engine: Engine, selector: int, cpl: int, long_mode: bool) -> int:
    """Return the privilege level of the handler."""
    if selector & ~3 == 0:
        raise _Fault(GP)
    table = engine.state.segments[LDT if selector & 4 else GDT]
    if (selector | 7) > table.limit:
        raise _Fault(GP, selector & ~3)
    high: int = struct.unpack("<I", _read(engine, table.base + (selector & ~7) + 4, 4))[0]
    dpl = high >> 13 & 3
    if not high & 1 << 12 or not high & 1 << 11 or dpl > cpl:
        raise _Fault(GP, selector & ~3)
    if not high & 1 << 15:
        raise _Fault(NP, selector & ~3)
    if long_mode and (not high & 1 << 21 or high & 1 << 22):
        raise _Fault(GP, selector & ~3)
    return cpl if high & 1 << 10 else dpl


def _check_stack(
    engine: Engine, dpl: int, cpl: int, long_mode: bool, stack_table: int, wide: bool
) -> None:
    state = engine.state
    task = state.segments[TR]
    inner = dpl < cpl or state.eflags.value & _VM
    if long_mode:
        top = state.regs[4]
        if stack_table or inner:
            offset = 28 + 8 * stack_table if stack_table else 4 + 8 * dpl
            if offset + 7 > task.limit:
                raise _Fault(TS, task.selector & ~3)
            top = struct.unpack("<Q", _read(engine, task.base + offset, 8))[0]
        top &= ~15
        if top >> 47 not in (0, 0x1FFFF):
            raise _Fault(SS)
        _check_writable(engine, top - _FRAME, top - 1)
        return
    if not inner:
        segment = state.segments[2]
        mask = 0xFFFF_FFFF if segment.flags & 1 << 22 else 0xFFFF
        top = segment.base + (state.regs[4] & mask)
        _check_writable(engine, (top - 16) & 0xFFFF_FFFF, (top - 1) & 0xFFFF_FFFF)
        return
    offset, size = (4 + 8 * dpl, 6) if task.flags >> 11 & 1 else (2 + 4 * dpl, 4)
    if offset + size - 1 > task.limit:
        raise _Fault(TS, task.selector & ~3)
    raw = _read(engine, task.base + offset, size)
    pointer, selector = struct.unpack("<IH" if size == 6 else "<HH", raw)
    base = _check_stack_segment(engine, selector, dpl)
    top = base + pointer
    _check_writable(engine, (top - 40) & 0xFFFF_FFFF, (top - 1) & 0xFFFF_FFFF)


def _check_stack_segment(engine: Engine, selector: int, dpl: int) -> int:
    code = selector & ~3
    table = engine.state.segments[LDT if selector & 4 else GDT]
    if code == 0 or selector & 3 != dpl or (selector | 7) > table.limit:
        raise _Fault(TS, code)
    low, high = struct.unpack("<II", _read(engine, table.base + (selector & ~7), 8))
    writable_data = high & 0x1A00 == 0x1200  # S, data, writable
    if high >> 13 & 3 != dpl or not writable_data:
        raise _Fault(TS, code)
    if not high & 1 << 15:
        raise _Fault(SS, code)
    return int(low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000)


def _read(engine: Engine, address: int, size: int) -> bytes:
    data = engine.read_linear(address & 0xFFFF_FFFF_FFFF_FFFF, size)
    if data is None:
        raise _Fault(PF, 0, address)
    return data


def _check_writable(engine: Engine, first: int, last: int) -> None:
    for address in (last,) if first >> 12 == last >> 12 else (last, first):
        if engine.translate(address & 0xFFFF_FFFF_FFFF_FFFF, write=True) is None:
            raise _Fault(PF, 2, address)
