# SPDX-License-Identifier: Apache-2.0
"""
The engine's registers
----------------------

Views on the memory in which Unicorn keeps its CPU: a hundred times faster than its own calls.

The offsets are those of the x86-64 library of Unicorn 2.1.4 (struct CPUX86State and what lies
around it: qemu/target/i386/cpu.h, qemu/include/hw/core/cpu.h, include/uc_priv.h of that version).
They are private, so the version is pinned, and ``selftest`` compares them with what Unicorn's own
calls say before any guest runs.
"""

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Any, Final

__all__ = ("CS", "DS", "ES", "FS", "GDT", "GS", "IDT", "LDT", "SS", "TR", "State")

ES, CS, SS, DS, FS, GS, LDT, TR, GDT, IDT = range(10)

_CPU_IN_ENGINE: Final = 0x1B8
_NO_EXIT_REQUEST: Final = 0x7F2
_ENV_IN_CPU: Final = 0x128
_ENV_AFTER_CPU: Final = 0x8A50
_INTERRUPT_REQUEST: Final = 0x1C
_ICOUNT_DECR: Final = 0x130
_EXCEPTION_INDEX_BEFORE_ENV: Final = 0x8B0

MSR_OFFSETS: Final = {
    0x174: 0x12C0,
    0x175: 0x12C8,
    0x176: 0x12D0,
    0xC0000080: 0x250,
    0xC0000081: 0x12D8,
    0xC0000082: 0x12E8,
    0xC0000083: 0x12F0,
    0xC0000084: 0x12F8,
    0xC0000102: 0x1300,
    0xC0000103: 0x1320,
}
"""Where the engine keeps MSRs, by index."""

MSR_SEGMENTS: Final = {0xC0000100: FS, 0xC0000101: GS}
"""MSRs that are the bases of segments."""


class SegmentCache(ctypes.Structure):
    """A segment register with its hidden part; *flags* are bits 63:32 of its descriptor."""

    _fields_ = (
        ("selector", c_uint32),
        ("base", c_uint64),
        ("limit", c_uint32),
        ("flags", c_uint32),
    )


class State:
    """
    The registers of one engine, as views: writing is changing the CPU.

    Flags that TCG keeps apart (condition codes and DF) are in *cc_op*, *cc_src* and *df*; see
    :meth:`Engine.rflags`.

    :ivar regs: RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15, RIP.
    """

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.cpu = cpu = c_uint64.from_address(engine + _CPU_IN_ENGINE).value
        self.env = env = c_uint64.from_address(cpu + _ENV_IN_CPU).value if cpu else 0
        if env != cpu + _ENV_AFTER_CPU:
            raise LookupError("the engine's CPU is not where Unicorn 2.1.4 has it")
        self.regs: Any = (c_uint64 * 17).from_address(env)
        self.eflags = c_uint64.from_address(env + 0x88)
        self.cc_dst = c_uint64.from_address(env + 0x90)
        self.cc_src = c_uint64.from_address(env + 0x98)
        self.cc_op = c_uint32.from_address(env + 0xA8)
        self.df = c_int32.from_address(env + 0xAC)
        self.hflags = c_uint32.from_address(env + 0xB0)
        self.hflags2 = c_uint32.from_address(env + 0xB4)
        self.segments: Any = (SegmentCache * 10).from_address(env + 0xB8)
        self.cr: Any = (c_uint64 * 5).from_address(env + 0x1A8)
        self.efer = c_uint64.from_address(env + MSR_OFFSETS[0xC0000080])
        self.error_code = c_uint32.from_address(env + 0x1508)
        self.exception_is_int = c_uint32.from_address(env + 0x150C)
        self.exception_next_eip = c_uint64.from_address(env + 0x1510)
        self.dr: Any = (c_uint64 * 8).from_address(env + 0x1518)
        self.old_exception = c_int32.from_address(env + 0x1578)
        self.exception_index = c_int32.from_address(env - _EXCEPTION_INDEX_BEFORE_ENV)
        self.interrupt_request = c_uint32.from_address(cpu + _INTERRUPT_REQUEST)
        self.interrupt_byte = c_uint8.from_address(cpu + _INTERRUPT_REQUEST)
        icount = c_uint64.from_address(cpu + _ICOUNT_DECR).value
        self.leave_block = c_uint16.from_address(icount + 2)
        self.no_exit_request = c_uint8.from_address(engine + _NO_EXIT_REQUEST)

    def msr(self, index: int) -> c_uint64:
        """Return the view on an MSR of :data:`MSR_OFFSETS`."""
        return c_uint64.from_address(self.env + MSR_OFFSETS[index])
