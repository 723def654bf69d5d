# SPDX-License-Identifier: Apache-2.0
"""
Accesses that user space answers
--------------------------------

KVM_EXIT_IO and KVM_EXIT_MMIO, and what is left to do of the instruction when user space comes back.
"""

import struct
from typing import Final

from kvmsr.abi import Quirk
from kvmsr.backend.soft.cpu.access import MemoryAccess, PortAccess
from kvmsr.backend.soft.cpu.code import fetch, first_byte
from kvmsr.backend.soft.cpu.delivery import deliver
from kvmsr.backend.soft.cpu.instruction import Instruction
from kvmsr.backend.soft.cpu.state import CS, DS, ES, FS, GS, SS, TR
from kvmsr.backend.soft.page import DATA
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = (
    "drop_writes_of_ins",
    "memory_access",
    "memory_writes",
    "port_access",
    "read_in_place",
    "write_in_place",
)

_RIP, _RAX, _RCX, _RSI, _RDI = 16, 0, 1, 6, 7
_GP, _PF = 13, 14
_DF, _RF = 1 << 10, 1 << 16
_CS64: Final = 1 << 15
_STRINGS: Final = frozenset(b"\x6c\x6d\x6e\x6f")
_PLAIN: Final = frozenset(b"\xe4\xe5\xe6\xe7\xec\xed\xee\xef")
_READ_AHEAD: Final = 1024
"""Bytes."""
_OLD_PORT: Final = 0x7E
"""User space of old knew the RIP behind an OUT to this one."""
_OVERRIDES: Final = {0x26: ES, 0x2E: CS, 0x36: SS, 0x3E: DS, 0x64: FS, 0x65: GS}


def port_access(vcpu: Vcpu, access: PortAccess) -> bool:
    """Exit for a port access; True: it raised an exception, or was answered in the kernel."""
    if not _allowed(vcpu, access.port, access.size):
        return _raise(vcpu, _GP, 0)
    instruction = fetch(vcpu.cpu)
    if instruction is not None and instruction.opcode[0] in _STRINGS:
        return _string_access(vcpu, access, instruction)
    size = access.size
    vcpu.page.bytes[DATA : DATA + size] = access.value.to_bytes(size, "little")  # 0 for a read
    vcpu.page.exit_io(access, 1)
    emulated = vcpu.vm.profile.completion == "emulator"
    if access.write and (emulated or _rip_goes_on(vcpu, access.port)):
        # The instruction is over; nobody comes back to it, not even for a single step.
        vcpu.cpu.state.eflags.value &= ~_RF
        vcpu.emulation.skip(access.length, steps=not emulated)
        return False
    rip, flags, changes = vcpu.cpu.regs[_RIP], vcpu.cpu.rflags & ~_RF, vcpu.regs_changes

    def complete(vcpu: Vcpu) -> bool:
        regs = vcpu.cpu.regs
        loads = not access.write
        if emulated:
            regs[_RIP], vcpu.cpu.rflags = rip, flags
            # KVM's emulator forgets at a KVM_SET_REGS which registers it has yet to write.
            loads = loads and changes == vcpu.regs_changes
        elif regs[_RIP] != rip:
            return True  # user space went elsewhere
        if loads:
            value = int.from_bytes(vcpu.page.bytes[DATA : DATA + size], "little")
            kept = 0 if size == 4 else regs[_RAX] & ~((1 << 8 * size) - 1)
            regs[_RAX] = kept | value
        return vcpu.emulation.skip(access.length)

    vcpu.complete_emulation = complete
    return False


def _rip_goes_on(vcpu: Vcpu, port: int) -> bool:
    return port == _OLD_PORT and vcpu.vm.has_quirk(Quirk.OUT_7E_INC_RIP)


def read_in_place(vcpu: Vcpu, port: int, size: int) -> int | None:
    """Have a plain IN answered on the spot; None: it was not."""
    if vcpu.serve is None or not _is_plain(vcpu):
        return None
    vcpu.page.exit_io(PortAccess(False, port, size, 0), 1)
    return int.from_bytes(vcpu.page.bytes[DATA : DATA + size], "little") if vcpu.serve() else None


def write_in_place(vcpu: Vcpu, port: int, size: int, value: int) -> bool:
    """Have a plain OUT answered on the spot; return whether it was."""
    if vcpu.serve is None or not _is_plain(vcpu):
        return False
    vcpu.page.bytes[DATA : DATA + size] = value.to_bytes(size, "little")
    vcpu.page.exit_io(PortAccess(True, port, size, value), 1)
    return vcpu.serve()


def _is_plain(vcpu: Vcpu) -> bool:
    """Return whether the CPU itself ends the instruction well: IN or OUT, and no debugger."""
    # Writes to no memory that were made before come first.
    return not vcpu.debugging.control and not vcpu.cpu.writes and first_byte(vcpu.cpu) in _PLAIN


def drop_writes_of_ins(vcpu: Vcpu, access: PortAccess) -> None:
    """Forget what the engine writes for INS: a zero, to try it out, and what it has not read."""
    instruction = None if access.write else fetch(vcpu.cpu)
    if instruction is not None and instruction.opcode[0] in _STRINGS:
        del vcpu.cpu.writes[-2:]


def _allowed(vcpu: Vcpu, port: int, size: int) -> bool:
    """Check IOPL and the task's permission map (SDM volume 1, 19.5)."""
    state = vcpu.cpu.state
    flags = state.eflags.value
    v86 = flags & 1 << 17
    if not state.cr[0] & 1 or (not v86 and state.hflags.value & 3 <= flags >> 12 & 3):
        return True
    task = state.segments[TR]
    if task.limit < 103:
        return False
    with vcpu.cpu.as_supervisor():
        raw = vcpu.cpu.read_linear(task.base + 102, 2)
        at = struct.unpack("<H", raw)[0] + port // 8 if raw is not None else task.limit
        raw = vcpu.cpu.read_linear(task.base + at, 2) if at + 1 <= task.limit else None
    return raw is not None and not struct.unpack("<H", raw)[0] >> port % 8 & (1 << size) - 1


def _string_access(vcpu: Vcpu, access: PortAccess, instruction: Instruction) -> bool:
    """
    INS and OUTS: an element a time, or, for REP INS, as many as KVM reads ahead.

    The engine was stopped behind its first element; that one is done again here.
    """
    regs, size = vcpu.cpu.regs, access.size
    wide = _address_mask(vcpu, instruction)
    step = -size if vcpu.cpu.rflags & _DF else size
    if instruction.rep and not regs[_RCX] & wide:
        return vcpu.emulation.skip(instruction.start)
    pointer = _RSI if access.write else _RDI
    segment = ES
    if access.write:
        segment = next((_OVERRIDES[p] for p in instruction.prefixes if p in _OVERRIDES), DS)
        address = _linear(vcpu, segment, regs[pointer] & wide)
        data = vcpu.cpu.read_linear(address, size)
        if data is None:
            return _page_fault(vcpu, address, write=False)
        vcpu.page.bytes[DATA : DATA + size] = data
    ahead = instruction.rep and not access.write
    vcpu.page.exit_io(access, _read_ahead(vcpu, size, wide) if ahead else 1)

    def complete(vcpu: Vcpu) -> bool:
        regs = vcpu.cpu.regs
        if instruction.rep and not regs[_RCX] & wide:
            return vcpu.emulation.skip(instruction.start)
        writes: list[MemoryAccess] = []
        # By the registers as they are now: user space may have changed them.
        for number in range(_read_ahead(vcpu, size, wide) if ahead else 1):
            if not access.write:
                address = _linear(vcpu, ES, regs[_RDI] & wide)
                at = DATA + number * size
                if not _store(vcpu, address, bytes(vcpu.page.bytes[at : at + size]), writes):
                    return _page_fault(vcpu, address, write=True)
            regs[pointer] = _merge(regs[pointer], regs[pointer] + step, wide)
            if instruction.rep:
                regs[_RCX] = _merge(regs[_RCX], regs[_RCX] - 1, wide)
        goes_on = bool(instruction.rep and regs[_RCX] & wide)  # with elements left
        going_on = goes_on or vcpu.emulation.skip(instruction.start)
        return memory_writes(vcpu, writes) if writes and going_on else going_on

    vcpu.complete_emulation = complete
    return False


def _read_ahead(vcpu: Vcpu, size: int, wide: int) -> int:
    """Return how many elements a REP INS gets at once (pio_in_emulated of emulate.c)."""
    left, address = (int(vcpu.cpu.regs[number]) for number in (_RCX, _RDI))
    offset = address & 0xFFF
    in_page = offset if vcpu.cpu.rflags & _DF else 0x1000 - offset
    return max(1, min(in_page, _READ_AHEAD // size, left & wide))


def _store(vcpu: Vcpu, address: int, data: bytes, elsewhere: list[MemoryAccess]) -> bool:
    """Write to a linear address, or note what is for no memory; False: it is a page fault."""
    if vcpu.cpu.write_linear(address, data):
        return True
    physical = vcpu.cpu.translate(address, write=True)
    if physical is None or vcpu.vm.has_memory(physical, len(data)):
        return False
    value = int.from_bytes(data, "little")
    elsewhere.append(MemoryAccess(True, physical, len(data), value))
    return True


def _address_mask(vcpu: Vcpu, instruction: Instruction) -> int:
    other = 0x67 in instruction.prefixes
    if vcpu.cpu.state.hflags.value & _CS64:
        return 0xFFFF_FFFF if other else 0xFFFF_FFFF_FFFF_FFFF
    is_32 = bool(vcpu.cpu.state.segments[CS].flags & 1 << 22)
    return 0xFFFF_FFFF if is_32 != other else 0xFFFF


def _merge(old: int, new: int, mask: int) -> int:
    return new & mask if mask >= 0xFFFF_FFFF else old & ~mask | new & mask


def _linear(vcpu: Vcpu, segment: int, offset: int) -> int:
    state = vcpu.cpu.state
    if state.hflags.value & _CS64:
        base = state.segments[segment].base if segment in (FS, GS) else 0
        return int(base + offset & 0xFFFF_FFFF_FFFF_FFFF)
    return int(state.segments[segment].base + offset & 0xFFFF_FFFF)


def _page_fault(vcpu: Vcpu, address: int, *, write: bool) -> bool:
    vcpu.cpu.state.cr[2] = address
    return _raise(vcpu, _PF, (2 if write else 0) | (4 if vcpu.cpu.cpl == 3 else 0))


def _raise(vcpu: Vcpu, vector: int, error_code: int) -> bool:
    if deliver(vcpu.cpu, vector, error_code):
        return True
    vcpu.events.shut_down = True
    return True


# Memory that is not there


def memory_access(vcpu: Vcpu, access: MemoryAccess) -> bool:
    """Exit for an access to no memory; the CPU is before its instruction."""
    if access.write is None:
        vcpu.page.exit_emulation_failure()
    else:
        _exit_for_read(vcpu, access, {})
    return False


def memory_writes(vcpu: Vcpu, writes: list[MemoryAccess]) -> bool:
    """Exit for writes to no memory, one after the other; the guest is behind them."""
    first, rest = writes[0], writes[1:]
    vcpu.page.exit_mmio(first)
    vcpu.complete_emulation = lambda vcpu: not rest or memory_writes(vcpu, rest)
    return False


def _exit_for_read(vcpu: Vcpu, access: MemoryAccess, reads: dict[int, bytes]) -> None:
    vcpu.page.exit_mmio(access)

    def complete(vcpu: Vcpu) -> bool:
        reads[access.address] = bytes(vcpu.run.exit.mmio.data[: access.size])
        vcpu.cpu.step_over(reads)
        further = vcpu.cpu.access
        if isinstance(further, MemoryAccess):
            _exit_for_read(vcpu, further, reads)
            return False
        if vcpu.cpu.writes:
            return memory_writes(vcpu, vcpu.cpu.writes)
        return vcpu.skipped()

    vcpu.complete_emulation = complete
