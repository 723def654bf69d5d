# SPDX-License-Identifier: Apache-2.0
"""
Self-modifying code
-------------------

TCG write-protects the pages it has translated code from, per TLB entry. Unicorn leaves out the step
that finds the entries which other linear addresses have for the same page (the function that would
do it is a stub), so code that is written through such an alias stays stale. A kernel that recycles
page-cache pages does just that.

The stub is called through the library's own jump table. Its slot there is made to point to a
function that does the missing step, for the engine that runs on the calling thread.
"""

import ctypes
import mmap
import threading
from typing import Any, Final

from kvmsr.backend.soft.cpu.library import Library, OnProtect, library
from kvmsr.errors import BackendError

__all__ = ("install", "running")

_SLOT_AFTER_EMU_START: Final = 0x10FC4F0
_STUB: Final = "cpu_physical_memory_test_and_clear_dirty_x86_64"
_WHOLE: Final = (1 << 64) - 1
_READ_WRITE: Final = 3


class _Running(threading.local):
    """The CPU that the thread runs; 0: none."""

    cpu = 0


running = _Running()
_installed: Any = None


def install() -> None:
    """
    Mend the library, once a process.

    :raises BackendError: if its insides are not as expected.
    """
    global _installed
    if _installed is not None:
        return
    found = library()
    slot = ctypes.c_uint64.from_address(found.address("uc_emu_start") + _SLOT_AFTER_EMU_START)
    if slot.value != found.address(_STUB):
        raise BackendError(
            "the soft backend does not find its way in this build of Unicorn's library; install"
            " the wheel from PyPI"
        )
    _installed = OnProtect(_protector(found))
    _make_writable(ctypes.addressof(slot))
    slot.value = ctypes.cast(_installed, ctypes.c_void_p).value or 0


def _protector(found: Library) -> Any:
    reset = found.reset_dirty

    def protect(_start: int, _length: int, _client: int) -> bool:
        # Where the page lies in this process is not known here, so every entry of the TLB goes
        # through the check once more: a lookup each, some hundred times a second at most.
        if running.cpu:
            reset(running.cpu, 0, _WHOLE)
        return False

    return protect


def _make_writable(address: int) -> None:
    page = address & ~(mmap.PAGESIZE - 1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), _READ_WRITE):
        raise BackendError("the soft backend may not change the library's jump table (mprotect)")
