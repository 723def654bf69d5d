# SPDX-License-Identifier: Apache-2.0
"""
Code
----

Guest instructions as bytes. Where an encoding depends on the mode, it says which it is for.
"""

from typing import Final

RDMSR: Final = b"\x0f\x32"
WRMSR: Final = b"\x0f\x30"
RDTSC: Final = b"\x0f\x31"
RDTSCP: Final = b"\x0f\x01\xf9"
SYSCALL: Final = b"\x0f\x05"
NOP: Final = b"\x90"
HLT: Final = b"\xf4"
SPIN: Final = b"\xeb\xfe"  # jmp to itself

OPERAND_SIZE: Final = b"\x66"
LOCK: Final = b"\xf0"
REX_W: Final = b"\x48"  # 64-bit mode

MARKER_PORT: Final = 0xE9
FAULT_PORT: Final = 0xEE
MARKER: Final = bytes((0xE6, MARKER_PORT))  # out %al, $0xe9
FAULT: Final = bytes((0xE6, FAULT_PORT)) + HLT

INC_RBX: Final = b"\x48\xff\xc3"  # 64-bit mode
FORCED_EMULATION: Final = b"\x0f\x0bkvm"  # ud2 and a signature: the next instruction is emulated


def mov_ecx(value: int) -> bytes:
    """Return ``mov $value, %ecx`` for 64-bit mode."""
    return b"\xb9" + (value & 0xFFFFFFFF).to_bytes(4, "little")


def loop(body: bytes) -> bytes:
    """Return *body* again and again; up to 126 bytes."""
    return body + b"\xeb" + (-len(body) - 2 & 0xFF).to_bytes(1, "little")
