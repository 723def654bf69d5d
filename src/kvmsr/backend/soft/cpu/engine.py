# SPDX-License-Identifier: Apache-2.0
"""
The engine
----------

A CPU of Unicorn's that lives inside a VMRUN: what SVM intercepts comes out, everything else runs at
full speed.

Unicorn's x86 is QEMU's TCG, which emulates AMD's SVM, but where QEMU would switch worlds, Unicorn
calls its interrupt hook with 0x100 + exit code, and the guest's state is untouched. So the CPU is
started by a VMRUN whose control block intercepts what KVM would want to see, and never leaves it.

*Loading state* is another VMRUN, because it computes all hidden flags; an injected exception, which
the engine reports instead of delivering it, ends it before the guest's first instruction.

*Port accesses* have no intercept here (Unicorn leaves the check out), only a hook in the middle of
the instruction. Where the access is not answered at once, an I/O breakpoint of the engine's own
stops it right behind the instruction, and the registers are put back to before it.

*Stopping* from another thread: Unicorn's own way restarts an instruction after its memory access
was made. So ``no_exit_request`` turns that off, and :meth:`Engine.interrupt` uses an interrupt
request of the CPU, which is looked at between translated blocks.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Final

from kvmsr.backend.soft.cpu import library as lib
from kvmsr.backend.soft.cpu import vmcb
from kvmsr.backend.soft.cpu.access import Client, MemoryAccess, PortAccess
from kvmsr.backend.soft.cpu.coherence import running
from kvmsr.backend.soft.cpu.core import Core
from kvmsr.backend.soft.cpu.state import CS
from kvmsr.backend.soft.cpu.vmcb import Exit, StartState
from kvmsr.errors import BackendError

__all__ = ("Engine",)

_HIDDEN: Final = 1 << 45
"""Where the pages of the engine's own lie in guest-physical memory; the guest cannot reach them."""

_STUB, _VMCB, _HSAVE, _MSR_MAP, _IO_MAP = (_HIDDEN + n * 0x1000 for n in (0, 1, 2, 3, 6))
_PAGES: Final = 9
_VMRUN: Final = b"\x0f\x01\xd8"
_NEVER: Final = 0xFFFF_FFFF_FFFF_F000
_LOADED: Final = 31  # an exception vector that no CPU raises

_EFER: Final = 0xC000_0080
_VM_HSAVE_PA: Final = 0xC001_0117
_HF_IOBPT, _HF_INHIBIT_IRQ, _HF2_NMI = 1 << 24, 1 << 3, 1 << 2
_TF, _IF = 1 << 8, 1 << 9
_REGISTERS: Final = 0x1500
_MEM_WRITE: Final = 17

_REQUEST_WINDOW: Final = 0x02  # CPU_INTERRUPT_HARD
_REQUEST_NOW: Final = 0x42  # and CPU_INTERRUPT_SMI, which looks at no flag of the guest's
_REQUEST_NMI: Final = 0x200

_DB: Final = Exit.BASE + Exit.EXCEPTION + 1
_REQUESTED: Final = frozenset(Exit.BASE + code for code in (Exit.INTR, Exit.NMI, Exit.SMI))
_NO_BREAKPOINTS: Final = 0x400
_IO_BREAKPOINT: Final = 0x401 | 2 << 16  # DR7: the first breakpoint, on port accesses

_MEM_WRITE_UNMAPPED, _MEM_FETCH_UNMAPPED, _MEM_WRITE_PROT, _MEM_FETCH_PROT = 20, 21, 22, 24


class Engine(Core):
    """
    One engine, for one vCPU.

    :ivar state: its registers.
    :ivar access: after :meth:`run`, the access that ended it, if one did; it is undone.
    :ivar writes: after :meth:`run`, the writes to no memory that the guest has made, in order.
        They are done as far as the guest is concerned; nothing else that is visible from outside
        the CPU has happened since.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self.access: PortAccess | MemoryAccess | None = None
        self.writes: list[MemoryAccess] = []
        self._port: PortAccess | None = None
        self._breakpoints = (0, 0)
        self._loading = self._stepping = False
        self._stepped = False
        self._traced = 0
        self._put_off = 0
        self._map_own_pages()
        self._add_hooks()
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

    def _add_hooks(self) -> None:
        self._hook(lib.HOOK_INTR, lib.OnInterrupt(self._on_interrupt))
        self._hook(lib.HOOK_INSN_INVALID, lib.OnInvalid(self._on_invalid))
        self._hook(lib.HOOK_INSN, lib.OnIn(self._on_in), lib.INSN_IN)
        self._hook(lib.HOOK_INSN, lib.OnOut(self._on_out), lib.INSN_OUT)
        self._hook(lib.HOOK_INSN, lib.OnSyscall(self._on_syscall), lib.INSN_SYSCALL)
        self._on_memory_hook = lib.OnMemory(self._on_memory)

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
        block = vmcb.build(start, _IO_MAP, _MSR_MAP, _LOADED)
        self._own[0x1000 : 0x1000 + len(block)] = block
        state.hflags.value, state.cr[0], state.cr[4], state.efer.value = self._host
        state.cr[3] = 0
        state.segments[CS].base = 0  # the engine adds it in 64-bit mode, too
        state.exception_is_int.value = 0
        self._library.tlb_flush(state.cpu)
        state.regs[0] = _VMCB
        pending = state.interrupt_request.value
        state.interrupt_request.value = 0
        self._loading = True
        self._start(_STUB)
        state.interrupt_request.value = pending
        if self._loading:
            self._loading = False
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

    def run(self) -> None:
        """
        Run the guest until the client says stop, or until an access that it cannot answer.

        That is then in :attr:`access` or :attr:`writes`.
        """
        self.access = None
        self.writes = []
        self.running = True
        error = self._start(self.state.regs[16])
        self.running = False
        if self._error is not None:
            failed, self._error = self._error, None
            raise failed
        if error and self.access is None and not self.writes:
            raise BackendError(f"Unicorn stopped with error {error} at {self.state.regs[16]:#x}")

    def step_over(self, reads: dict[int, bytes]) -> None:
        """
        Execute one instruction that reads memory which is not there.

        Afterwards it is either done, and what it wrote to no memory is in :attr:`writes`; or it is
        undone, because it reads more than is known: that is in :attr:`access`.

        :param reads: what it reads, by address.
        """
        kept = bytes(ctypes.string_at(self.state.env, _REGISTERS))
        known = {
            address + number: data[number]
            for address, data in reads.items()
            for number in range(len(data))
        }
        pages = sorted({address & ~0xFFF for address in known})
        scratch = mmap.mmap(-1, 0x1000 * len(pages))
        for address, byte in known.items():
            scratch[pages.index(address & ~0xFFF) * 0x1000 + address % 0x1000] = byte
        pin = ctypes.c_char.from_buffer(scratch)
        unknown: list[MemoryAccess] = []
        written: list[MemoryAccess] = []
        hooks = []
        for number, page in enumerate(pages):
            self.map(page, 0x1000, ctypes.addressof(pin) + number * 0x1000, writable=True)
            callback = lib.OnMemory(_recorder(known, unknown, written))
            hooks.append(self._hook(lib.HOOK_MEM, callback, 0, page, page + 0xFFF))
        try:
            self.step()
        finally:
            for hook in hooks:
                self._library.hook_del(self._handle, hook)
            del self._keep[-len(hooks) :]
            for page in pages:
                self.unmap(page, 0x1000)
        self.writes += written
        if unknown and self.access is None:
            self.access = unknown[0]
        if self.access is not None:
            self.writes = []
            ctypes.memmove(self.state.env, kept, len(kept))

    def step(self) -> bool:
        """
        Run the guest for one instruction, or until it comes out of it.

        :return: whether the instruction was executed. If the guest traces itself, it has yet to be
            told.
        """
        state = self.state
        self._traced = state.eflags.value & _TF
        state.eflags.value |= _TF
        self._stepping, self._stepped = True, False
        try:
            self.run()
        finally:
            self._end_step()
        return self._stepped and self.access is None

    def _end_step(self) -> None:
        if self._stepping:
            self._stepping = False
            flags = self.state.eflags
            flags.value = flags.value & ~_TF | self._traced

    def _start(self, address: int) -> int:
        outer, running.cpu = running.cpu, self.state.cpu
        self._stopping, self._put_off = False, 0
        try:
            return int(self._library.emu_start(self._handle, address, _NEVER, 0, 0))
        finally:
            if self._put_off:
                self.state.interrupt_request.value |= self._put_off
            running.cpu = outer

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

    # Hooks

    def _on_interrupt(self, _uc: int, number: int, _data: int) -> None:
        try:
            if self._stopping or (self._stepping and number in _REQUESTED):
                # Before it stops, the engine looks once more for interrupts. They are for later:
                # one after a HLT would find a CPU that sleeps.
                self._put_off |= self.state.interrupt_request.value
                self.state.interrupt_request.value = 0
                if self._stopping:
                    self._stop()
                return
            stepping = self._stepping
            self._end_step()  # before a frame with RFLAGS is pushed
            if number == _DB and (self._port is not None or stepping):
                if self._port is not None:
                    self._after_port()
                self._stepped = stepping
                self._stop()
                return
            if number == _LOADED and self._loading:
                self._loading = False
                self._stop()
                return
            # What was written comes first; this comes again.
            if (
                self.writes
                or not self._client.exit(number - Exit.BASE, self.state.error_code.value)
                or stepping
            ):
                self._stop()
        except BaseException as error:
            self._fail(error)

    def _on_invalid(self, _uc: int, _data: int) -> bool:
        try:
            if self.writes or not self._client.invalid():
                self._stop()
        except BaseException as error:
            self._fail(error)
        return True

    def _on_syscall(self, _uc: int, _data: int) -> None:
        try:
            self._client.syscall()
        except BaseException as error:
            self._fail(error)

    def _on_in(self, _uc: int, port: int, size: int, _data: int) -> int:
        if self._port is None:
            try:
                value = self._client.port_in(port, size)
                if value is not None:
                    return value
            except BaseException as error:
                self._error = self._error or error
            self._stop_after(PortAccess(False, port, size, 0))
        return 0

    def _on_out(self, _uc: int, port: int, size: int, value: int, _data: int) -> None:
        value &= (1 << 8 * size) - 1
        if self._port is None:
            try:
                if self._client.port_out(port, size, value):
                    return
            except BaseException as error:
                self._error = self._error or error
            self._stop_after(PortAccess(True, port, size, value))

    def _stop_after(self, access: PortAccess) -> None:
        state = self.state
        self._port = access
        self._before = (state.regs[0], state.regs[1], state.regs[6], state.regs[7], state.regs[16])
        self._breakpoints = state.dr[0], state.dr[7]
        state.dr[0], state.dr[7] = access.port, _IO_BREAKPOINT

    def _after_port(self) -> None:
        state, access = self.state, self._port
        assert access is not None
        self._port = None
        state.dr[0], state.dr[7] = self._breakpoints
        access.length = state.regs[16] - self._before[4]
        state.regs[0], state.regs[1], state.regs[6], state.regs[7], state.regs[16] = self._before
        self.access = access

    def _on_memory(
        self, _uc: int, kind: int, address: int, size: int, value: int, _data: int
    ) -> bool:
        # False makes the engine leave a read undone and come out at its instruction. A write it
        # drops, and comes out at the end of the block.
        if kind in (_MEM_WRITE_UNMAPPED, _MEM_WRITE_PROT):
            self.writes.append(MemoryAccess(True, address, size, value & (1 << 8 * size) - 1))
        else:
            fetch = kind in (_MEM_FETCH_UNMAPPED, _MEM_FETCH_PROT)
            self.access = MemoryAccess(None if fetch else False, address, size, 0)
        return False


def _recorder(
    known: dict[int, int], unknown: list[MemoryAccess], written: list[MemoryAccess]
) -> Callable[..., bool]:
    def record(_uc: int, kind: int, address: int, size: int, value: int, _data: int) -> bool:
        if kind == _MEM_WRITE:
            written.append(MemoryAccess(True, address, size, value & (1 << 8 * size) - 1))
        elif not known.keys() >= set(range(address, address + size)):
            unknown.append(MemoryAccess(False, address, size, 0))
        return True

    return record
