# SPDX-License-Identifier: Apache-2.0
"""
Unicorn's library
-----------------

The functions that are called directly, with their types: Unicorn's own binding wraps each call in
several microseconds of Python, leaves some out, and takes a tenth of a second to import.
"""

import ctypes
import importlib.util
import os
from ctypes import CFUNCTYPE, POINTER, c_bool, c_int, c_int64, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from pathlib import Path
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
        package = importlib.util.find_spec("unicorn")
        if package is None or not package.submodule_search_locations:
            raise BackendError(f"the soft backend needs Unicorn: pip install unicorn=={VERSION}")
        folder = Path(package.submodule_search_locations[0])
        self.path = str(folder / "lib" / "libunicorn.so.2")
        try:
            # Its own symbols come first: in QEMU's process there are others of the same names.
            self._library = ctypes.CDLL(self.path, mode=os.RTLD_DEEPBIND)
        except OSError as error:
            raise BackendError(f"Unicorn's library cannot be loaded: {error}") from None
        self.constants = _constants(folder / "x86_const.py")
        number = self._define("uc_version", c_uint32, pointer, pointer)(None, None)
        found = ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8))
        if found != VERSION:
            raise BackendError(
                f"the soft backend needs Unicorn {VERSION} and finds {found}: it uses insides of"
                f" the library that differ between versions; pip install unicorn=={VERSION}"
            )
        define = self._define
        # These two take a variable number of arguments.
        self.hook_add = self._library.uc_hook_add
        self.ctl = self._library.uc_ctl
        self.open = define("uc_open", c_int, c_int, c_int, POINTER(pointer))
        self.close = define("uc_close", c_int, pointer)
        self.reg_read = define("uc_reg_read", c_int, pointer, c_int, pointer)
        self.reg_write = define("uc_reg_write", c_int, pointer, c_int, pointer)
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


def _constants(file: Path) -> Any:
    """Return the numbers of registers; by the file, since the package takes long to import."""
    spec = importlib.util.spec_from_file_location("kvmsr._unicorn_x86_const", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_loaded: Library | None = None


def library() -> Library:
    """Return the library, loading it at first."""
    global _loaded
    if _loaded is None:
        _loaded = Library()
    return _loaded
