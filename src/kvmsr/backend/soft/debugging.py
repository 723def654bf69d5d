# SPDX-License-Identifier: Apache-2.0
"""
Debugging
---------

The debug registers, the guest's own and those of the debugger (KVM_SET_GUEST_DEBUG), and
KVM_EXIT_DEBUG.
"""

from collections.abc import Sequence
from typing import Final

from kvmsr.abi import ExitReason, GuestDbg
from kvmsr.backend.soft.cpu.code import linear_rip
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.page import RunPage
from kvmsr.backend.soft.profile import Profile

__all__ = ("BS", "DB", "SINGLESTEP", "TF", "Debugging")

DB: Final = 1
"""The vector of debug exceptions."""

BS: Final = 1 << 14
"""DR6: it was a single step."""

TF: Final = 1 << 8
"""RFLAGS: a #DB after each instruction."""

# Not by the enumeration: they are looked at once an access.
SINGLESTEP: Final = int(GuestDbg.SINGLESTEP)
_HARDWARE: Final = int(GuestDbg.USE_HW_BP)

_DR6, _DR7 = 6, 7
_DR6_RESET, _DR7_RESET = 0xFFFF_0FF0, 0x400
_DR7_RESERVED: Final = 0xD000


class Debugging:
    """
    What a vCPU has for debugging.

    :ivar control: flags of :class:`kvmsr.abi.GuestDbg`; 0: there is no debugger.
    :ivar dr: DR0 to DR7, as the guest sees them.
    """

    def __init__(self, cpu: Engine, page: RunPage, profile: Profile) -> None:
        self._cpu, self._page = cpu, page
        self._reports_dr7 = profile.completion != "emulator"  # whose steps leave it as it was
        self.control = 0
        self._registers: Sequence[int] = (0,) * 8
        self.dr = [0] * 8

    def reset(self) -> None:
        """Bring the guest's registers into their state after RESET or INIT."""
        self.dr[:] = [0, 0, 0, 0, 0, 0, _DR6_RESET, _DR7_RESET]

    def set_dr(self, number: int, value: int) -> bool:
        """Set a debug register for the guest; return False for reserved bits."""
        if number >= _DR6:
            if value >> 32:
                return False
            if number == _DR6:
                value |= _DR6_RESET
            else:
                value = value & ~_DR7_RESERVED | _DR7_RESET
        self.dr[number] = value
        self.update_breakpoints()
        return True

    def set_control(self, control: int, registers: Sequence[int]) -> None:
        """Do as the debugger wants, who has these DR0 to DR7."""
        if self.control & SINGLESTEP and not control:
            self._cpu.state.eflags.value &= ~TF
        self.control, self._registers = control, registers
        self.update_breakpoints()
        self._cpu.flush_code()  # breakpoints are written into the guest's code

    def update_breakpoints(self) -> None:
        """Set the CPU's breakpoints: the debugger's, or else the guest's own."""
        registers = self._registers if self.control & _HARDWARE else self.dr
        self._cpu.set_breakpoints(list(registers[:4]), registers[_DR7] & 0xFFFF_FFFF | _DR7_RESET)

    @property
    def dr7(self) -> int:
        """DR7 as KVM_EXIT_DEBUG shows it: the debugger's, or else the guest's own."""
        return (self._registers if self.control & _HARDWARE else self.dr)[_DR7]

    def note(self, bits: int) -> None:
        """Put into DR6 why there is a #DB; only the breakpoints met before are taken out."""
        self.dr[_DR6] = self.dr[_DR6] & ~0xF | bits

    def exit(self, vector: int, dr6: int | None = None, dr7: int | None = None) -> bool:
        """
        Write a KVM_EXIT_DEBUG for *vector*; return False, for the guest does not go on.

        None leaves in the page what was there.
        """
        arch = self._page.run.exit.debug.arch
        arch.exception, arch.pc = vector, linear_rip(self._cpu)
        if dr6 is not None:
            arch.dr6 = dr6
        if dr7 is not None and self._reports_dr7:
            arch.dr7 = dr7
        return self._page.exit(ExitReason.DEBUG)

    def exit_step(self) -> bool:
        """Write the KVM_EXIT_DEBUG of the debugger's single step; return False."""
        return self.exit(DB, _DR6_RESET | BS)
