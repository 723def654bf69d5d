# SPDX-License-Identifier: Apache-2.0
"""
The instruction at RIP
----------------------

What the guest is about to execute, or came out at.
"""

from typing import Final

from kvmsr.backend.soft.cpu.core import Core
from kvmsr.backend.soft.cpu.instruction import MAX_LENGTH, Instruction, decode
from kvmsr.backend.soft.cpu.state import CS

__all__ = ("code_at_rip", "fetch", "first_byte", "length_of", "linear_rip", "rip_mask")

_RIP: Final = 16
_CS64: Final = 1 << 15


def fetch(cpu: Core) -> Instruction | None:
    """Return the instruction at RIP, or None where it cannot be read."""
    code = code_at_rip(cpu, MAX_LENGTH)
    if code is None:  # the next page may be missing: what is left of this one
        code = code_at_rip(cpu, 0x1000 - linear_rip(cpu) % 0x1000)
    long_mode = bool(cpu.state.hflags.value & _CS64)
    return decode(code[:MAX_LENGTH], long_mode=long_mode) if code else None


def linear_rip(cpu: Core) -> int:
    """Return the linear address of the instruction at RIP."""
    state = cpu.state
    rip: int = cpu.regs[_RIP]
    return rip if state.hflags.value & _CS64 else state.segments[CS].base + rip & 0xFFFF_FFFF


def rip_mask(cpu: Core) -> int:
    """Return the bits that RIP has in the guest's mode."""
    return 0xFFFF_FFFF_FFFF_FFFF if cpu.state.hflags.value & _CS64 else 0xFFFF_FFFF


def code_at_rip(cpu: Core, size: int) -> bytes | None:
    """Return the first bytes at RIP, or None where they cannot be read."""
    return cpu.read_linear(linear_rip(cpu), size)


def first_byte(cpu: Core) -> int | None:
    """Return the first byte of the instruction at RIP, or None where it cannot be read."""
    return cpu.read_byte(linear_rip(cpu))


def length_of(cpu: Core) -> int:
    """Return the length of a two-byte instruction; prefixes, which are rare, count."""
    if first_byte(cpu) == 0x0F:
        return 2
    instruction = fetch(cpu)
    return instruction.start if instruction is not None else 2
