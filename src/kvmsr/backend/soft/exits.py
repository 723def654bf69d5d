# SPDX-License-Identifier: Apache-2.0
"""
Exit handlers
-------------

What the kernel does when the guest comes out of the CPU: a function for each intercept, as in
arch/x86/kvm/svm/svm.c. Each returns whether the guest goes on at once; False: to the run loop.
"""

from collections.abc import Callable
from typing import Final

from kvmsr.abi import GuestDbg
from kvmsr.backend.soft import instructions
from kvmsr.backend.soft.cpu.vmcb import Exit
from kvmsr.backend.soft.debugging import DB, SINGLESTEP
from kvmsr.backend.soft.injection import attend, nmi_window
from kvmsr.backend.soft.io import read_in_place, write_in_place
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("HANDLERS", "Intercepts")

_UD, _GP, _PF = 6, 13, 14
_DR6_RESET: Final = 0xFFFF_0FF0


def _exception(vector: int) -> Callable[[Vcpu, int], bool]:
    def handle(vcpu: Vcpu, error_code: int) -> bool:
        if vector == _PF:
            vcpu.cpu.state.cr[2] = vcpu.cpu.fault_address
        return vcpu.emulation.raise_exception(vector, error_code)

    return handle


def _debug(vcpu: Vcpu, _info: int) -> bool:
    """A single step or a breakpoint: the debugger's, or the guest's own."""
    state, debugging = vcpu.cpu.state, vcpu.debugging
    dr6 = state.dr[6]
    state.dr[6] = _DR6_RESET
    if debugging.control & (SINGLESTEP | GuestDbg.USE_HW_BP):
        if debugging.control & SINGLESTEP:
            debugging.stepped()
        return debugging.exit(DB, dr6, debugging.dr7)
    debugging.note(dr6 & 0xE00F)
    return vcpu.emulation.raise_exception(DB)


def _general_protection(vcpu: Vcpu, _info: int) -> bool:
    return vcpu.emulation.raise_exception(_GP)


def _shutdown(vcpu: Vcpu, _info: int) -> bool:
    vcpu.events.shut_down = True
    return False


HANDLERS: Final[dict[int, Callable[[Vcpu, int], bool]]] = {
    Exit.MSR: instructions.msr,
    Exit.INTR: attend,
    Exit.SMI: attend,
    Exit.NMI: nmi_window,
    Exit.CPUID: instructions.cpuid,
    Exit.RDTSC: instructions.rdtsc,
    Exit.RDPMC: _general_protection,
    Exit.SWINT: instructions.software_interrupt,
    Exit.PAUSE: instructions.pause,
    Exit.HLT: instructions.hlt,
    Exit.SHUTDOWN: _shutdown,
    Exit.ICEBP: instructions.icebp,
    Exit.VMMCALL: instructions.vmmcall,
    Exit.CR4_WRITE: instructions.write_cr4,
    Exit.CR8_READ: instructions.read_cr8,
    Exit.CR8_WRITE: instructions.write_cr8,
    **{Exit.EXCEPTION + vector: _exception(vector) for vector in range(32)},
    Exit.EXCEPTION + DB: _debug,
    Exit.EXCEPTION + _UD: instructions.undefined,
    **{
        code: instructions.undefined
        for code in (*range(Exit.VMRUN, Exit.SKINIT + 1), Exit.MONITOR, Exit.MWAIT)
        if code != Exit.VMMCALL
    },
    **{Exit.DR_READ + number: instructions.move_dr(False, number) for number in range(8)},
    **{Exit.DR_WRITE + number: instructions.move_dr(True, number) for number in range(8)},
}
"""What to do at each intercept, by exit code."""


class Intercepts:
    """What comes out of a vCPU's CPU, which is its client."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def exit(self, code: int, info: int) -> bool:
        """Handle an intercept."""
        return HANDLERS[code](self._vcpu, info)

    def syscall(self) -> None:
        """Do a SYSCALL."""
        instructions.syscall(self._vcpu)

    def invalid(self) -> bool:
        """Handle an instruction that the engine does not know."""
        return instructions.undefined(self._vcpu)

    def port_in(self, port: int, size: int) -> int | None:
        """Read a port, unless the guest may not or user space is to answer."""
        vcpu = self._vcpu
        if not self._may_access_ports():
            return None
        value = vcpu.vm.port_in(port, size)
        return read_in_place(vcpu, port, size) if value is None else value

    def port_out(self, port: int, size: int, value: int) -> bool:
        """Write to a port, unless the guest may not or user space is to take it."""
        if not self._may_access_ports():
            return False
        vcpu = self._vcpu
        return vcpu.vm.port_out(port, size, value) or write_in_place(vcpu, port, size, value)

    def _may_access_ports(self) -> bool:
        """Decide by IOPL alone; the task's permission map is looked at later."""
        state = self._vcpu.cpu.state
        allowed: bool = state.hflags.value & 3 <= state.eflags.value >> 12 & 3
        return allowed
