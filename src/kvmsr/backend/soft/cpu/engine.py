# SPDX-License-Identifier: Apache-2.0
"""
The engine
----------

Running a guest: what comes out of the CPU, and how one instruction is executed alone.

*Port accesses* have no intercept here (Unicorn leaves the check out), only a hook in the middle of
the instruction. Where the access is not answered at once, an I/O breakpoint of the engine's own
stops it right behind the instruction, and the registers are put back to before it.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Final

from kvmsr.backend.soft.cpu import library as lib
from kvmsr.backend.soft.cpu.access import Client, MemoryAccess, PortAccess
from kvmsr.backend.soft.cpu.access_hooks import AccessHooks
from kvmsr.backend.soft.cpu.vmcb import Exit
from kvmsr.backend.soft.cpu.vmrun import LOADED, GuestCpu
from kvmsr.errors import BackendError

__all__ = ("Engine",)

_TF: Final = 1 << 8
_REGISTERS: Final = 0x1500
_MEM_WRITE: Final = 17
_WIDEST: Final = 63
"""Bytes, less one, of an access."""

_DB: Final = Exit.BASE + Exit.EXCEPTION + 1
_REQUESTED: Final = frozenset(Exit.BASE + code for code in (Exit.INTR, Exit.NMI, Exit.SMI))
_IO_BREAKPOINT: Final = 0x401 | 2 << 16  # DR7: the first breakpoint, on port accesses

_MEM_WRITE_UNMAPPED, _MEM_FETCH_UNMAPPED, _MEM_WRITE_PROT, _MEM_FETCH_PROT = 20, 21, 22, 24


class Engine(GuestCpu):
    """
    One engine, for one vCPU.

    :ivar client: who handles what comes out; to be set before the first run.
    :ivar access: after :meth:`run`, the access that ended it, if one did; it is undone.
    :ivar writes: after :meth:`run`, the writes to no memory that the guest has made, in order.
        They are done as far as the guest is concerned; nothing else that is visible from outside
        the CPU has happened since.
    :ivar touched: after :meth:`step`, which places of :meth:`watch` it has touched, as a mask.
    """

    client: Client
    touched: int

    def __init__(self) -> None:
        super().__init__()
        self.access: PortAccess | MemoryAccess | None = None
        self.writes: list[MemoryAccess] = []
        self._port: PortAccess | None = None
        self._breakpoints = (0, 0)
        self._stepping = self._stepped = False
        self._traced = self.touched = 0
        self._watched: dict[int, tuple[int, int, bool]] = {}
        self._watches: list[tuple[int, object]] = []
        self._add_hooks()

    def _add_hooks(self) -> None:
        self._hook(lib.HOOK_INTR, lib.OnInterrupt(self._on_interrupt))
        self._hook(lib.HOOK_INSN_INVALID, lib.OnInvalid(self._on_invalid))
        self._hook(lib.HOOK_INSN, lib.OnIn(self._on_in), lib.INSN_IN)
        self._hook(lib.HOOK_INSN, lib.OnOut(self._on_out), lib.INSN_OUT)
        self._hook(lib.HOOK_INSN, lib.OnSyscall(self._on_syscall), lib.INSN_SYSCALL)
        self._on_memory_hook = lib.OnMemory(self._on_memory)
        self._recorder: Callable[..., bool] = _unwatched
        on_access = lib.OnMemory(lambda *access: self._recorder(*access))
        self._access_hooks = AccessHooks(
            self._handle.value or 0, lambda: self._hook(lib.HOOK_MEM, on_access)
        )

    def close(self) -> None:
        """Give the engine back; one whose thread has not come back goes with the thread."""
        if self._handle and not self.running:
            self._access_hooks.give_back()
        super().close()

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
        if self.state.eflags.value & _TF:
            self.flush_code()  # it may have been translated for a single step without the hooks
        self._recorder = _recorder(known, unknown, written, pages)
        for number, page in enumerate(pages):
            self.map(page, 0x1000, ctypes.addressof(pin) + number * 0x1000, writable=True)
        try:
            with self._access_hooks.there():
                self.step()
        finally:
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

        :return: whether the instruction was executed. The #DB of a guest that traces itself is yet
            to be raised.
        """
        state = self.state
        self.touched = 0
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

    def watch(self, places: dict[int, tuple[int, int, bool]]) -> None:
        """
        Have it seen what accesses memory, until it is called with others.

        :param places: by number, first and last physical address, and whether writes alone count.
        """
        if places == self._watched:
            return
        for hook, callback in self._watches:
            self._library.hook_del(self._handle, hook)
            self._keep.remove(callback)
        self._watches.clear()
        for number, (first, last, writes) in places.items():
            callback = lib.OnMemory(self._toucher(1 << number, first, last, writes))
            hook = self._hook(lib.HOOK_MEM, callback, 0, max(first - _WIDEST, 0), last)
            self._watches.append((hook, callback))
        self._watched = places
        self.flush_code()  # what is translated already does not look for hooks
        self.flush_tlb()

    def _toucher(self, bit: int, first: int, last: int, writes: bool) -> Callable[..., bool]:
        def touch(_uc: int, kind: int, address: int, size: int, _value: int, _data: int) -> bool:
            if address <= last and first < address + size and (kind == _MEM_WRITE or not writes):
                self.touched |= bit
            return True

        return touch

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
            if number == LOADED and self.loading:
                self.loading = False
                self._stop()
                return
            # What was written comes first; this comes again.
            if (
                self.writes
                or not self.client.exit(number - Exit.BASE, self.state.error_code.value)
                or stepping
            ):
                self._stop()
        except BaseException as error:
            self._fail(error)

    def _on_invalid(self, _uc: int, _data: int) -> bool:
        try:
            if self.writes or not self.client.invalid():
                self._stop()
        except BaseException as error:
            self._fail(error)
        return True

    def _on_syscall(self, _uc: int, _data: int) -> None:
        try:
            self.client.syscall()
        except BaseException as error:
            self._fail(error)

    def _on_in(self, _uc: int, port: int, size: int, _data: int) -> int:
        if self._port is None:
            try:
                value = self.client.port_in(port, size)
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
                if self.client.port_out(port, size, value):
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


def _unwatched(*_access: int) -> bool:
    return True


def _recorder(
    known: dict[int, int],
    unknown: list[MemoryAccess],
    written: list[MemoryAccess],
    pages: list[int],
) -> Callable[..., bool]:
    def record(_uc: int, kind: int, address: int, size: int, value: int, _data: int) -> bool:
        if address & ~0xFFF not in pages:
            return True
        if kind == _MEM_WRITE:
            written.append(MemoryAccess(True, address, size, value & (1 << 8 * size) - 1))
        elif not known.keys() >= set(range(address, address + size)):
            unknown.append(MemoryAccess(False, address, size, 0))
        return True

    return record
