# SPDX-License-Identifier: Apache-2.0
"""
Unicorn's library
-----------------

The functions that are called directly, with their types: Unicorn's own binding wraps each call in
several microseconds of Python, and leaves some out.
"""

import ctypes
import importlib
from ctypes import CFUNCTYPE, POINTER, c_bool, c_int, c_int64, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from importlib import metadata
from typing import Any, Final

from kvmsr.errors import BackendError

__all__ = ("PROT_READ", "PROT_WRITE", "VERSION", "Library", "library")

VERSION: Final = "2.1.4"

HOOK_INTR: Final = 1 << 0
HOOK_INSN: Final = 1 << 1
HOOK_UNMAPPED: Final = 7 << 4  # read, write, fetch
HOOK_PROT: Final = 7 << 7
HOOK_MEM: Final = 3 << 10  # read, write
HOOK_INSN_INVALID: Final = 1 << 14
INSN_IN: Final = 218
INSN_OUT: Final = 500
INSN_SYSCALL: Final = 699
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

OnInterrupt = CFUNCTYPE(None, pointer, c_uint32, pointer)
OnInvalid = CFUNCTYPE(c_bool, pointer, pointer)
OnIn = CFUNCTYPE(c_uint32, pointer, c_uint32, c_int, pointer)
OnOut = CFUNCTYPE(None, pointer, c_uint32, c_int, c_uint32, pointer)
OnSyscall = CFUNCTYPE(None, pointer, pointer)
OnMemory = CFUNCTYPE(c_bool, pointer, c_int, c_uint64, c_int, c_int64, pointer)
OnMmioRead = CFUNCTYPE(c_uint64, pointer, c_uint64, c_uint32, pointer)
OnMmioWrite = CFUNCTYPE(None, pointer, c_uint64, c_uint32, c_uint64, pointer)
OnProtect = CFUNCTYPE(c_bool, c_uint64, c_uint64, c_uint32)


class Library:
    """
    The shared library, loaded once a process.

    :raises BackendError: if Unicorn is missing or is not the version whose insides are known.
    """

    def __init__(self) -> None:
        try:
            self.unicorn: Any = importlib.import_module("unicorn")
            self.constants: Any = importlib.import_module("unicorn.x86_const")
            binding: Any = importlib.import_module("unicorn.unicorn_py3.unicorn")
        except ImportError:
            raise BackendError(
                f"the soft backend needs Unicorn: pip install unicorn=={VERSION}"
            ) from None
        found = metadata.version("unicorn")
        if found != VERSION:
            raise BackendError(
                f"the soft backend needs Unicorn {VERSION} and finds {found}: it uses insides of"
                f" the library that differ between versions; pip install unicorn=={VERSION}"
            )
        library: Any = binding.uclib
        self.path: str = library._name
        self._library = library
        define = self._define
        self.hook_add = library.uc_hook_add  # takes a variable number of arguments
        self.hook_del = define("uc_hook_del", c_int, pointer, c_size_t)
        self.emu_start = define(
            "uc_emu_start", c_int, pointer, c_uint64, c_uint64, c_uint64, c_size_t
        )
        self.emu_stop = define("uc_emu_stop", c_int, pointer)
        self.map_ptr = define(
            "uc_mem_map_ptr", c_int, pointer, c_uint64, c_size_t, c_uint32, pointer
        )
        self.unmap = define("uc_mem_unmap", c_int, pointer, c_uint64, c_size_t)
        self.mmio_map = define(
            "uc_mmio_map", c_int, pointer, c_uint64, c_size_t, pointer, pointer, pointer, pointer
        )
        self.translate = define(
            "uc_vmem_translate", c_int, pointer, c_uint64, c_uint32, POINTER(c_uint64)
        )
        self.vmem_read = define(
            "uc_vmem_read", c_int, pointer, c_uint64, c_uint32, pointer, c_size_t
        )
        self.vmem_write = define(
            "uc_vmem_write", c_int, pointer, c_uint64, c_uint32, pointer, c_size_t
        )
        self.do_interrupt = define("x86_cpu_do_interrupt_x86_64", None, pointer)
        self.hardware_interrupt = define(
            "do_interrupt_x86_hardirq_x86_64", None, pointer, c_int, c_int
        )
        self.compute_flags = define("cpu_cc_compute_all_x86_64", c_uint32, pointer, c_int)
        self.update_cr4 = define("cpu_x86_update_cr4_x86_64", None, pointer, c_uint32)
        self.update_dr7 = define("cpu_x86_update_dr7_x86_64", None, pointer, c_uint32)
        self.tlb_flush = define("tlb_flush_x86_64", None, pointer)
        self.tb_flush = define("tb_flush_x86_64", None, pointer)
        self.reset_dirty = define("tlb_reset_dirty_x86_64", None, pointer, c_uint64, c_uint64)

    def address(self, name: str) -> int:
        """Return where the function *name* lies."""
        return ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value or 0

    def _define(self, name: str, result: Any, *arguments: Any) -> Any:
        # A prototype of our own, so that the binding's is left alone.
        return ctypes.CFUNCTYPE(result, *arguments)((name, self._library))


_loaded: Library | None = None


def library() -> Library:
    """Return the library, loading it at first."""
    global _loaded
    if _loaded is None:
        _loaded = Library()
    return _loaded
