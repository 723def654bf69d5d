# SPDX-License-Identifier: Apache-2.0
"""
Debugging
---------

The debug registers, the guest's own and those of the debugger (KVM_SET_GUEST_DEBUG), the debugger's
single step, and KVM_EXIT_DEBUG.

*Whose TF it is.* Where the CPU does the single step, RFLAGS has the debugger's TF, and so has what
is pushed of it. Where KVM emulates each instruction it needs no TF. It puts it into RFLAGS all the
same, but only where it was asked to step (singlestep_rip of arch/x86/kvm/x86.c), and takes it out
with the first instruction, the guest's own included.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from kvmsr.abi import ExitReason, GuestDbg
from kvmsr.backend.soft.cpu.code import first_byte, linear_rip
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.page import RunPage
from kvmsr.backend.soft.profile import Profile

__all__ = ("BLOCKIRQ", "BS", "DB", "HARDWARE", "SINGLESTEP", "TF", "Debugging")

DB: Final = 1
"""The vector of debug exceptions."""

BS: Final = 1 << 14
"""DR6: it was a single step."""

TF: Final = 1 << 8
"""RFLAGS: a #DB after each instruction."""

# Not by the enumeration: they are looked at once an access.
SINGLESTEP: Final = int(GuestDbg.SINGLESTEP)
BLOCKIRQ: Final = int(GuestDbg.BLOCKIRQ)
HARDWARE: Final = int(GuestDbg.USE_HW_BP)

_POP_FLAGS: Final = (0x9D, 0xCF)  # POPF, IRET
_DR6, _DR7 = 6, 7
_WRITE, _READ_WRITE = 1, 3
_DETECT: Final = 1 << 13
_SIZES: Final = (1, 2, 8, 4)
_U64: Final = (1 << 64) - 1
_DR6_RESET, _DR7_RESET = 0xFFFF_0FF0, 0x400
_DR7_RESERVED: Final = 0xD000


class Debugging:
    """
    What a vCPU has for debugging.

    :ivar control: flags of :class:`kvmsr.abi.GuestDbg`; 0: there is no debugger.
    :ivar dr: DR0 to DR7, as the guest sees them.
    :ivar watched: the breakpoints on data: number, linear address, size, and whether they are for
        writes alone.
    """

    def __init__(self, cpu: Engine, page: RunPage, profile: Profile) -> None:
        self._cpu, self._page = cpu, page
        self._emulates = profile.completion == "emulator"
        self._own_tf = 0  # the guest's, while the engine has the debugger's
        self._pops_flags = False  # the instruction that is stepped over sets TF by itself
        self._step_rip: int | None = None  # where the debugger has asked to step
        self.control = 0
        self.watched: tuple[tuple[int, int, int, bool], ...] = ()
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
        if self.control & SINGLESTEP:
            self._cpu.state.eflags.value &= ~TF
        self._step_rip = linear_rip(self._cpu) if control & SINGLESTEP else None
        self.control, self._registers = control, registers
        self.update_breakpoints()
        self._cpu.flush_code()  # breakpoints are written into the guest's code

    def update_breakpoints(self) -> None:
        """Set the CPU's breakpoints: the debugger's, or else the guest's own."""
        registers = self._registers if self.control & HARDWARE else self.dr
        dr7 = registers[_DR7] & 0xFFFF_FFFF | _DR7_RESET
        self._cpu.set_breakpoints(list(registers[:4]), dr7)
        if not self._emulates:  # where all is emulated, they do not come
            self.watched = tuple(_watched(registers, dr7))

    @property
    def dr7(self) -> int:
        """DR7 as KVM_EXIT_DEBUG shows it: the debugger's, or else the guest's own."""
        return (self._registers if self.control & HARDWARE else self.dr)[_DR7]

    @property
    def detects_moves(self) -> bool:
        """Whether the debugger wants to hear of MOV to and from debug registers (DR7.GD)."""
        return bool(
            self.control & HARDWARE and self._registers[_DR7] & _DETECT and not self._emulates
        )

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
        if dr7 is not None and not self._emulates:  # its steps leave in the page what was there
            arch.dr7 = dr7
        return self._page.exit(ExitReason.DEBUG)

    def begin_step(self) -> None:
        """Have the engine stop behind the next instruction."""
        flags = self._cpu.state.eflags
        self._own_tf = flags.value & TF
        self._pops_flags = self._emulates and first_byte(self._cpu) in _POP_FLAGS
        flags.value |= TF

    def end_step(self) -> None:
        """The engine has stopped."""
        if self._emulates and not self._pops_flags:
            self._cpu.state.eflags.value &= ~TF

    def stepped(self) -> None:
        """The CPU has done a single step."""
        if not self._emulates:
            self._cpu.state.eflags.value &= ~TF

    def before_frame(self) -> None:
        """Have RFLAGS as they are to be pushed for an exception or an interrupt."""
        if self._emulates and self.control & SINGLESTEP:
            flags = self._cpu.state.eflags
            shown = self._own_tf if self._cpu.running else flags.value & TF
            if linear_rip(self._cpu) == self._step_rip:
                shown = TF
            flags.value = flags.value & ~TF | shown

    def after_frame(self) -> None:
        """Step through the handler, too, where that is emulated."""
        if self._emulates and self.control & SINGLESTEP and self._cpu.running:
            self._cpu.state.eflags.value |= TF

    def exit_step(self) -> bool:
        """Write the KVM_EXIT_DEBUG of the debugger's single step; return False."""
        return self.exit(DB, _DR6_RESET | BS)


def _watched(registers: Sequence[int], dr7: int) -> Iterator[tuple[int, int, int, bool]]:
    """Yield the breakpoints on data (SDM volume 3, 18.2.4)."""
    for number in range(4):
        kind = dr7 >> 16 + 4 * number & 3
        size = _SIZES[dr7 >> 18 + 4 * number & 3]
        if dr7 >> 2 * number & 3 and kind in (_WRITE, _READ_WRITE):
            yield number, registers[number] & -size & _U64, size, kind == _WRITE
