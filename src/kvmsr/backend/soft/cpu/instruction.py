# SPDX-License-Identifier: Apache-2.0
"""
Instructions
------------

As much of an instruction as the engine does not report: the few that are intercepted are decoded
here, prefixes first (SDM volume 2, chapter 2).
"""

from dataclasses import dataclass
from typing import Final

__all__ = ("MAX_LENGTH", "Instruction", "decode")

MAX_LENGTH: Final = 15
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_LOCK: Final = 0xF0
_INT: Final = b"\xcd"
_SHORT_INTERRUPTS: Final = {b"\xcc": 3, b"\xce": 4}  # INT3, INTO


@dataclass(frozen=True, slots=True)
class Instruction:
    """
    The start of an instruction.

    :ivar prefixes: the bytes before the opcode, REX left out.
    :ivar rex: the REX prefix, or 0.
    :ivar opcode: the opcode's bytes: one, or 0x0f and one.
    :ivar rest: what follows it.
    :ivar start: how many bytes come before *rest*.
    """

    prefixes: bytes
    rex: int
    opcode: bytes
    rest: bytes
    start: int

    @property
    def locked(self) -> bool:
        """Whether there is a LOCK prefix."""
        return _LOCK in self.prefixes

    @property
    def rep(self) -> bool:
        """Whether there is a REP prefix of either kind."""
        return 0xF2 in self.prefixes or 0xF3 in self.prefixes

    @property
    def rm(self) -> int:
        """The register of ModRM.rm, with REX.B."""
        return self.rest[0] & 7 | (self.rex & 1) << 3

    @property
    def reg(self) -> int:
        """The register of ModRM.reg, with REX.R."""
        return self.rest[0] >> 3 & 7 | (self.rex & 4) << 1

    def length_if_raises(self, vector: int) -> int:
        """Return the length of an INT3, INTO or INT n that raises *vector*; 0: it is none."""
        if self.opcode == _INT:
            return self.start + 1 if self.rest[:1] == bytes((vector,)) else 0
        return self.start if _SHORT_INTERRUPTS.get(self.opcode) == vector else 0


def decode(code: bytes, *, long_mode: bool) -> Instruction:
    """Return what *code*, at least one byte, starts with."""
    at, rex = 0, 0
    while at < len(code) - 1 and code[at] in _PREFIXES:
        at += 1
    prefixes = code[:at]
    if long_mode and at < len(code) - 1 and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    size = 2 if code[at] == 0x0F else 1
    return Instruction(prefixes, rex, code[at : at + size], code[at + size :], at + size)
