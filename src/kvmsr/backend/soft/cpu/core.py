# SPDX-License-Identifier: Apache-2.0
"""
The engine's memory and registers
---------------------------------

What can be said and asked of a Unicorn CPU that does not run; running it is in ``engine``.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from kvmsr.backend.soft.cpu import library as lib
from kvmsr.backend.soft.cpu.coherence import Coherence, install
from kvmsr.backend.soft.cpu.state import MSR_SEGMENTS, State
from kvmsr.errors import BackendError

__all__ = ("Core",)

_ARCH_X86, _MODE_64 = 4, 8
_CTL_WRITE, _CTL_USE_EXITS, _CTL_CPU_MODEL = 1, 4, 7
_SVME: Final = 1 << 12
_LMA: Final = 1 << 10
_EFER: Final = 0xC000_0080
_PAT: Final = 0x277
_PAT_RESET: Final = 0x0007_0406_0007_0406
_HF_INHIBIT_IRQ, _HF_CS64 = 1 << 3, 1 << 15
_CC_OP_EFLAGS: Final = 1
_CC_FLAGS: Final = 0x8D5
_DF: Final = 0x400
_NO_RAM: Final = (1 << 64) - 1


class Core:
    """
    A CPU of Unicorn's.

    :ivar state: its registers.
    :ivar regs: the general-purpose ones and RIP, as :attr:`State.regs` has them.
    :ivar coherence: what makes it notice that code is rewritten.
    :ivar running: it executes a guest.
    """

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        self._library = lib.library()
        install()
        constants = self._library.constants
        opened = self._library.open(_ARCH_X86, _MODE_64, ctypes.byref(self._handle))
        self._check(opened, "start a CPU")
        self._control(_CTL_CPU_MODEL, constants.UC_CPU_X86_EPYC_ROME)
        # No address ends the run: one would have to be looked up after each.
        self._control(_CTL_USE_EXITS, 1)
        self.read_register(constants.UC_X86_REG_RIP, 8)  # the CPU is made at the first use
        self.state = state = State(self._handle.value or 0)
        self.regs: Any = state.regs
        self.coherence = Coherence(self._handle.value or 0, state.cpu)
        self._byte = ctypes.c_uint8()
        self._byte_at = ctypes.addressof(self._byte)
        state.no_exit_request.value = 1
        self.running = False
        self._stopping = False
        self._pat = _PAT_RESET  # it changes nothing about the engine's memory
        self._error: BaseException | None = None
        self._keep: list[Any] = []
        self._gap_hooks: list[int] = []
        self._on_memory_hook: Any = None

    def close(self) -> None:
        """Give the engine back; one whose thread has not come back goes with the thread."""
        if self.running:
            return
        if self._handle:
            self._library.close(self._handle)
            self._handle = ctypes.c_void_p()
            self.coherence.close()
        self._keep.clear()

    def __del__(self) -> None:
        if self._handle:
            self._library.close(self._handle)

    def _control(self, what: int, value: int) -> None:
        number = _CTL_WRITE << 30 | 1 << 26 | what
        self._check(
            self._library.ctl(self._handle, ctypes.c_int(number - (1 << 32)), ctypes.c_int(value)),
            f"set {what}",
        )

    # Hooks and errors

    def _hook(
        self, kind: int, callback: Any, instruction: int = 0, first: int = 1, last: int = 0
    ) -> int:
        self._keep.append(callback)
        hook = ctypes.c_size_t()
        arguments: list[Any] = [
            self._handle, ctypes.byref(hook), ctypes.c_int(kind),
            ctypes.cast(callback, ctypes.c_void_p), ctypes.c_void_p(), ctypes.c_uint64(first),
            ctypes.c_uint64(last),
        ]  # fmt: skip
        if instruction:
            arguments.append(ctypes.c_int(instruction))
        self._check(self._library.hook_add(*arguments), "hook")
        return hook.value

    def _check(self, error: int, what: str) -> None:
        if error:
            raise BackendError(f"Unicorn refuses to {what}: error {error}")

    def _stop(self) -> None:
        self._stopping = True
        self._library.emu_stop(self._handle)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._stop()

    # Memory

    def map(self, address: int, size: int, host_address: int, *, writable: bool) -> None:
        """Map memory of this process at guest-physical *address*; both in whole pages."""
        permissions = 7 if writable else 5
        error = self._library.map_ptr(self._handle, address, size, permissions, host_address)
        self._check(error, f"map {size:#x} bytes at {address:#x}")

    def unmap(self, address: int, size: int) -> None:
        """Take memory away."""
        self._check(self._library.unmap(self._handle, address, size), f"unmap {address:#x}")

    def add_device(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> Callable[[int], None]:
        """
        Add a device whose registers, a page, are read and written by offset and size.

        :return: what maps it at an address; :meth:`unmap` takes it away from there.
        """

        def on_read(_uc: int, offset: int, width: int, _data: int) -> int:
            try:
                return read(offset, width)
            except BaseException as error:
                self._fail(error)
                return 0

        def on_write(_uc: int, offset: int, width: int, value: int, _data: int) -> None:
            try:
                write(offset, width, value)
            except BaseException as error:
                self._fail(error)

        callbacks = (lib.OnMmioRead(on_read), lib.OnMmioWrite(on_write))
        self._keep.extend(callbacks)
        on_read_at, on_write_at = (ctypes.cast(each, ctypes.c_void_p) for each in callbacks)

        def map_at(address: int) -> None:
            self._check(
                self._library.mmio_map(
                    self._handle, address, 0x1000, on_read_at, None, on_write_at, None
                ),
                f"map a device at {address:#x}",
            )

        return map_at

    def watch_gaps(self, gaps: list[tuple[int, int]]) -> None:
        """
        Set where there is no memory or it is read-only, as first and last addresses.

        A hook that covered writable memory would make each store there slow.
        """
        for hook in self._gap_hooks:
            self._library.hook_del(self._handle, hook)
        self._gap_hooks = [
            self._hook(lib.HOOK_UNMAPPED | lib.HOOK_PROT, self._on_memory_hook, 0, first, last)
            for first, last in gaps
        ]
        del self._keep[-len(gaps) or len(self._keep) :]

    def flush_code(self) -> None:
        """Forget all translated code: somebody else may have rewritten it."""
        self._library.tb_flush(self.state.cpu)

    def forget_code(self, host_address: int, size: int) -> None:
        """Forget the code translated from memory at *host_address*, which was written meanwhile."""
        first = self._library.ram_address(self._handle, host_address)
        if first != _NO_RAM:
            self._library.tb_invalidate(self._handle, first, first + size)

    def flush_tlb(self) -> None:
        """Forget all translated addresses."""
        self._library.tlb_flush(self.state.cpu)

    def read_linear(self, address: int, size: int) -> bytes | None:
        """Return *size* bytes at a linear address, or None where a page is missing."""
        data = ctypes.create_string_buffer(size)
        error = self._library.vmem_read(self._handle, address, lib.PROT_READ, data, size)
        return None if error else data.raw

    def read_byte(self, address: int) -> int | None:
        """Return the byte at a linear address, or None where the page is missing."""
        at = self._byte_at
        if self._library.vmem_read(self._handle, address, lib.PROT_READ, at, 1):
            return None
        return self._byte.value

    @contextmanager
    def as_supervisor(self) -> Iterator[None]:
        """Read and translate as the CPU itself does for its tables, whatever the CPL."""
        flags = self.state.hflags
        cpl = flags.value & 3
        flags.value &= ~3
        try:
            yield
        finally:
            flags.value |= cpl

    def write_linear(self, address: int, data: bytes) -> bool:
        """Write to a linear address; return whether all pages are there and writable."""
        return not self._library.vmem_write(self._handle, address, lib.PROT_WRITE, data, len(data))

    def translate(self, address: int, *, write: bool = False) -> int | None:
        """Return the physical address behind a linear one, or None."""
        physical = ctypes.c_uint64()
        permission = lib.PROT_WRITE if write else lib.PROT_READ
        error = self._library.translate(self._handle, address, permission, ctypes.byref(physical))
        return None if error else physical.value

    # Registers

    @property
    def cpl(self) -> int:
        """The privilege level, 0 to 3."""
        return self.state.hflags.value & 3

    @property
    def long_code(self) -> bool:
        """Whether 64-bit code runs."""
        return bool(self.state.hflags.value & _HF_CS64)

    @property
    def paging(self) -> bool:
        """CR0.PG."""
        return bool(self.state.cr[0] >> 31 & 1)

    def read_msr(self, index: int) -> int:
        """Return an MSR that the CPU itself holds."""
        if index in MSR_SEGMENTS:
            return int(self.state.segments[MSR_SEGMENTS[index]].base)
        if index == _PAT:
            return self._pat
        value = self.state.msr(index).value
        return value & ~_SVME if index == _EFER else value

    def write_msr(self, index: int, value: int) -> None:
        """Set an MSR that the CPU itself holds; unchecked. EFER.LMA stays."""
        if index in MSR_SEGMENTS:
            self.state.segments[MSR_SEGMENTS[index]].base = value
            return
        if index == _PAT:
            self._pat = value
            return
        if index == _EFER:
            value = value & ~_LMA | self.state.efer.value & _LMA | _SVME
        self.state.msr(index).value = value

    @property
    def rflags(self) -> int:
        """RFLAGS, put together from where the engine keeps its parts."""
        state = self.state
        flags = state.eflags.value | self._library.compute_flags(state.env, state.cc_op.value)
        return int(flags | (state.df.value & _DF) | 2)

    @rflags.setter
    def rflags(self, value: int) -> None:
        state = self.state
        state.cc_src.value = value & _CC_FLAGS
        state.cc_op.value = _CC_OP_EFLAGS
        state.df.value = -1 if value & _DF else 1
        # Where it starts to run, the engine takes all of them from here.
        apart = _CC_FLAGS | _DF if self.running else 0
        state.eflags.value = value & ~apart | 2

    def register(self, name: str) -> int:
        """Return Unicorn's number of a register."""
        return int(getattr(self._library.constants, f"UC_X86_REG_{name}"))

    def read_register(self, number: int, size: int) -> int:
        """Return a register of *size* bytes, by Unicorn's number; slow."""
        value = ctypes.create_string_buffer(16)
        self._check(self._library.reg_read(self._handle, number, value), f"read {number}")
        return int.from_bytes(value.raw[:size], "little")

    def write_register(self, number: int, value: int) -> None:
        """Set a register by Unicorn's number; slow."""
        data = ctypes.create_string_buffer(value.to_bytes(16, "little"), 16)
        self._check(self._library.reg_write(self._handle, number, data), f"write {number}")

    def write_register_msr(self, index: int, value: int) -> None:
        """Set an MSR through Unicorn's own call; not inside a VMRUN."""
        self.write_register(self._library.constants.UC_X86_REG_MSR, value << 64 | index)

    @property
    def shadow(self) -> bool:
        """Whether the last instruction (STI, MOV SS) holds interrupts off for one more."""
        return bool(self.state.hflags.value & _HF_INHIBIT_IRQ)

    @shadow.setter
    def shadow(self, value: bool) -> None:
        flags = self.state.hflags
        flags.value = flags.value & ~_HF_INHIBIT_IRQ | (_HF_INHIBIT_IRQ if value else 0)
