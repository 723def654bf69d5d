# SPDX-License-Identifier: Apache-2.0
"""
Inside a VMRUN
--------------

A CPU of Unicorn's that lives inside a VMRUN: what SVM intercepts comes out, everything else runs at
full speed.

Unicorn's x86 is QEMU's TCG, which emulates AMD's SVM, but where QEMU would switch worlds, Unicorn
calls its interrupt hook with 0x100 + exit code, and the guest's state is untouched. So the CPU is
started by a VMRUN whose control block intercepts what KVM would want to see, and never leaves it.

*Loading state* is another VMRUN, because it computes all hidden flags; an injected exception, which
the engine reports instead of delivering it, ends it before the guest's first instruction.

*Stopping* from another thread: Unicorn's own way restarts an instruction after its memory access
was made. So ``no_exit_request`` turns that off, and :meth:`GuestCpu.interrupt` uses an interrupt
request of the CPU, which is looked at between translated blocks.
"""

import ctypes
import mmap
from typing import Final

from kvmsr.backend.soft.cpu import vmcb
from kvmsr.backend.soft.cpu.core import Core
from kvmsr.backend.soft.cpu.state import CS
from kvmsr.backend.soft.cpu.vmcb import StartState
from kvmsr.errors import BackendError

__all__ = ("LOADED", "GuestCpu")

_HIDDEN: Final = 1 << 45
"""Where the pages of the engine's own lie in guest-physical memory; the guest cannot reach them."""

_STUB, _VMCB, _HSAVE, _MSR_MAP, _IO_MAP = (_HIDDEN + n * 0x1000 for n in (0, 1, 2, 3, 6))
_PAGES: Final = 9
_VMRUN: Final = b"\x0f\x01\xd8"
_NEVER: Final = 0xFFFF_FFFF_FFFF_F000

LOADED: Final = 31
"""The exception, which no CPU raises, by which the engine reports that state is loaded."""

_EFER: Final = 0xC000_0080
_VM_HSAVE_PA: Final = 0xC001_0117
_HF_IOBPT, _HF_INHIBIT_IRQ, _HF2_NMI = 1 << 24, 1 << 3, 1 << 2
_IF: Final = 1 << 9

_REQUEST_WINDOW: Final = 0x02  # CPU_INTERRUPT_HARD
_REQUEST_NOW: Final = 0x42  # and CPU_INTERRUPT_SMI, which looks at no flag of the guest's
_REQUEST_NMI: Final = 0x200

_NO_BREAKPOINTS: Final = 0x400


class GuestCpu(Core):
    """
    A CPU of Unicorn's that executes a guest; its hooks are set by :class:`Engine`.

    :ivar loading: state is being loaded; whoever sees :data:`LOADED` come out ends that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loading = False
        self._put_off = 0  # requests that came out too late for this run
        self._map_own_pages()
        self._host = self._enter()

    # Setting up

    def _map_own_pages(self) -> None:
        self._own = mmap.mmap(-1, _PAGES * mmap.PAGESIZE)
        self._own[0:3] = _VMRUN
        msr_map, io_map = (at - _HIDDEN for at in (_MSR_MAP, _IO_MAP))
        self._own[msr_map:io_map] = b"\xff" * (io_map - msr_map)
        pin = ctypes.c_char.from_buffer(self._own)
        self._keep.append(pin)
        # No guest may reach them, or it would decide what is intercepted. The engine's own reading
        # of the control block asks for no permission.
        at = ctypes.addressof(pin)
        self._check(self._library.map_ptr(self._handle, _STUB, 0x1000, 5, at), "map")
        self._check(
            self._library.map_ptr(self._handle, _VMCB, (_PAGES - 1) * 0x1000, 0, at + 0x1000), "map"
        )
        self._fault_address = ctypes.c_uint64.from_buffer(self._own, 0x1000 + vmcb.EXIT_INFO_2)

    def _enter(self) -> tuple[int, int, int, int]:
        """Return the flags and control registers from which a VMRUN can be executed."""
        self.write_register_msr(_EFER, 0x1D00)
        self.write_register_msr(_VM_HSAVE_PA, _HSAVE)
        state = self.state
        # Without PAE the CR0.PG of what is loaded would be ignored.
        state.cr[4] |= 1 << 5
        return state.hflags.value | _HF_IOBPT, state.cr[0], state.cr[4], state.efer.value

    @property
    def fault_address(self) -> int:
        """The address of the page fault that came out last."""
        return self._fault_address.value

    def load(self, start: StartState) -> None:
        """Load segments, tables, control registers, flags, RIP, RSP and RAX: all or nothing."""
        state = self.state
        block = vmcb.build(start, _IO_MAP, _MSR_MAP, LOADED)
        self._own[0x1000 : 0x1000 + len(block)] = block
        state.hflags.value, state.cr[0], state.cr[4], state.efer.value = self._host
        state.cr[3] = 0
        state.segments[CS].base = 0  # the engine adds it in 64-bit mode, too
        state.exception_is_int.value = 0
        self._library.tlb_flush(state.cpu)
        state.regs[0] = _VMCB
        pending = state.interrupt_request.value
        state.interrupt_request.value = 0
        self.loading = True
        self._start(_STUB)
        state.interrupt_request.value = pending
        if self.loading:
            self.loading = False
            raise BackendError("the engine does not execute VMRUN")

    def write_cr4(self, value: int) -> None:
        """Set CR4; the bits must be allowed."""
        self._library.update_cr4(self.state.env, value)

    def set_breakpoints(self, addresses: list[int], dr7: int) -> None:
        """Set the four breakpoints of DR0 to DR3 as DR7 says."""
        self._library.update_dr7(self.state.env, _NO_BREAKPOINTS)  # those of the old addresses
        self.state.dr[0], self.state.dr[1], self.state.dr[2], self.state.dr[3] = addresses
        self._library.update_dr7(self.state.env, dr7)
        self.state.hflags.value |= _HF_IOBPT

    # Running

    def _start(self, address: int) -> int:
        outer = self.coherence.enter()
        self._stopping, self._put_off = False, 0
        try:
            return int(self._library.emu_start(self._handle, address, _NEVER, 0, 0))
        finally:
            if self._put_off:
                self.state.interrupt_request.value |= self._put_off
            self.coherence.leave(outer)

    def interrupt(self) -> None:
        """Make the engine come out with an SMI exit soon; from any thread. May have to be repeated,
        since the store can meet one of the engine's own."""
        self.state.interrupt_byte.value = _REQUEST_NOW
        self.state.leave_block.value = 0xFFFF

    def open_window(self) -> None:
        """Come out with an INTR exit as soon as the guest takes interrupts."""
        self.state.interrupt_request.value |= _REQUEST_WINDOW
        self.state.leave_block.value = 0xFFFF

    def close_window(self) -> None:
        """No longer come out for interrupts, nor for :meth:`interrupt`."""
        self.state.interrupt_request.value &= ~_REQUEST_NOW

    def open_nmi_window(self) -> None:
        """Come out with an NMI exit as soon as the guest handles no other NMI."""
        self.state.interrupt_request.value |= _REQUEST_NMI
        self.state.leave_block.value = 0xFFFF

    def close_nmi_window(self) -> None:
        """No longer come out for NMIs."""
        self.state.interrupt_request.value &= ~_REQUEST_NMI

    @property
    def interruptible(self) -> bool:
        """Whether the guest takes interrupts now: IF is set, and no shadow is cast."""
        state = self.state
        return bool(state.eflags.value & _IF and not state.hflags.value & _HF_INHIBIT_IRQ)

    @property
    def nmi_masked(self) -> bool:
        """Whether the guest handles an NMI; IRET ends that."""
        return bool(self.state.hflags2.value & _HF2_NMI)

    @nmi_masked.setter
    def nmi_masked(self, value: bool) -> None:
        flags = self.state.hflags2
        flags.value = flags.value & ~_HF2_NMI | (_HF2_NMI if value else 0)

    def hardware_interrupt(self, vector: int) -> None:
        """Deliver an interrupt or NMI; it must not fault (see ``delivery``)."""
        self._library.hardware_interrupt(self.state.env, vector, 1)

    def do_interrupt(self) -> None:
        """Deliver what is in the state's exception fields; it must not fault (see ``delivery``)."""
        self._library.do_interrupt(self.state.cpu)
