# SPDX-License-Identifier: Apache-2.0
"""
Self-modifying code
-------------------

TCG notices that code is rewritten because stores to pages with translated code are slow, per TLB
entry. Unicorn leaves out the step that finds the entries which other linear addresses have for the
same page (the function that would do it is a stub), so code that is written through such an alias
stays stale. A kernel that recycles page-cache pages does just that. And it leaves out to note where
there is no code, so that stores to pages which the guest could execute stay slow: those of Linux to
the stack that it boots on.

Unicorn's functions call each other through the library's own jump table. Its slots for these are
made to point to functions that do the missing steps, for the engine that runs on the calling
thread. They are C, in ``tlb.c``. Where that was not built, the first step alone is done, in Python.
"""

import ctypes
import mmap
import threading
from collections.abc import Iterable
from ctypes import CFUNCTYPE, c_bool, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from pathlib import Path
from typing import Any, Final

from kvmsr.backend.soft.cpu.library import Library, library
from kvmsr.errors import BackendError

__all__ = ("Coherence", "install")

_SLOTS_AFTER_EMU_START: Final = {
    "cpu_physical_memory_test_and_clear_dirty_x86_64": 0x10FC4F0,
    "tlb_unprotect_code_x86_64": 0x10FDDF0,
    "tlb_set_page_with_attrs_x86_64": 0x10F9FA0,
    "tlb_set_dirty_x86_64": 0x10FB048,
    "tb_invalidate_phys_page_fast_x86_64": 0x10FF380,
}
_PROTECT: Final = "cpu_physical_memory_test_and_clear_dirty_x86_64"
_FIND_MEMORY: Final = "find_memory_mapping_x86_64"
_FIND_MEMORY_IN_ENGINE: Final = 0x120

_IN_PLACE: Final = {
    _PROTECT: "tlb_protect",
    "tlb_unprotect_code_x86_64": "tlb_unprotect",
    "tlb_set_page_with_attrs_x86_64": "tlb_set_page",
    "tlb_set_dirty_x86_64": "tlb_set_dirty",
    "tb_invalidate_phys_page_fast_x86_64": "tlb_invalidate",
}
"""Which function of tlb.c takes the place of which of Unicorn's."""

_USED: Final = (
    _FIND_MEMORY,
    "qemu_map_ram_ptr_x86_64",
    "qemu_ram_addr_from_host_x86_64",
    "tlb_reset_dirty_x86_64",
    "tlb_set_dirty_x86_64",
    "tb_invalidate_phys_page_fast_x86_64",
    "tlb_set_page_with_attrs_x86_64",
    "tb_flush_x86_64",
)
"""Unicorn's functions that tlb.c calls, as its struct functions has them."""

_WHOLE: Final = (1 << 64) - 1
_READ_WRITE: Final = 3
_OnProtect: Final = CFUNCTYPE(c_bool, c_uint64, c_uint64, c_uint32)


class _Running(threading.local):
    """The CPU that the thread runs, where there is no C; 0: none."""

    cpu = 0


class _Core:
    """The functions of tlb.c that are called from here."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        define = self._define
        self.use = define("tlb_use", None, pointer)
        self.new = define("tlb_new", pointer, pointer, pointer)
        self.free = define("tlb_free", None, pointer)
        self.enter = define("tlb_enter", pointer, pointer)
        self.forget = define("tlb_forget", None, pointer)
        self.learn = define("tlb_learn", None, pointer, c_uint64, c_uint64, c_uint64)

    def _define(self, name: str, result: Any, *arguments: Any) -> Any:
        return CFUNCTYPE(result, *arguments)((name, self.library))

    def address(self, name: str) -> int:
        """Return where the function *name* lies."""
        return ctypes.cast(getattr(self.library, name), pointer).value or 0


_running = _Running()
_installed = False
_core: _Core | None = None
_keep: list[Any] = []


def install() -> None:
    """
    Mend the library, once a process.

    :raises BackendError: if its insides are not as expected.
    """
    global _installed, _core
    if _installed:
        return
    found = library()
    start = found.address("uc_emu_start")
    slots = {
        name: c_uint64.from_address(start + offset)
        for name, offset in _SLOTS_AFTER_EMU_START.items()
    }
    if any(slot.value != found.address(name) for name, slot in slots.items()):
        raise BackendError(
            "the soft backend does not find its way in this build of Unicorn's library; install"
            " the wheel from PyPI"
        )
    _core = _load(found)
    for slot in slots.values():
        _make_writable(ctypes.addressof(slot))
    if _core is None:
        protect = _OnProtect(_protector(found))
        _keep.append(protect)
        slots[_PROTECT].value = ctypes.cast(protect, pointer).value or 0
    else:
        for name, own in _IN_PLACE.items():
            slots[name].value = _core.address(own)
    _installed = True


def _load(found: Library) -> _Core | None:
    """Return the functions of tlb.c, which know Unicorn's, or None if it was not built."""
    built = sorted(Path(__file__).parent.glob("_tlb*.so"))
    if not built:
        return None
    core = _Core(built[0])
    functions = (c_uint64 * len(_USED))(*map(found.address, _USED))
    core.use(ctypes.addressof(functions))
    return core


def _protector(found: Library) -> Any:
    reset = found.reset_dirty

    def protect(_start: int, _length: int, _client: int) -> bool:
        # Where the page lies in this process is not known here, so every entry of the TLB goes
        # through the check once more: a lookup each, some hundred times a second at most.
        if _running.cpu:
            reset(_running.cpu, 0, _WHOLE)
        return False

    return protect


def _make_writable(address: int) -> None:
    page = address & ~(mmap.PAGESIZE - 1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(pointer(page), ctypes.c_size_t(2 * mmap.PAGESIZE), _READ_WRITE):
        raise BackendError("the soft backend may not change the library's jump table (mprotect)")


class Coherence:
    """
    What the library has to know of one engine.

    :param engine: the engine's handle.
    :param cpu: its CPU.
    :raises BackendError: if the library's insides are not as expected.
    """

    def __init__(self, engine: int, cpu: int) -> None:
        self._cpu = cpu
        self._known: int | None = None
        if _core is None:
            return
        self._known = _core.new(engine, cpu)
        find = c_uint64.from_address(engine + _FIND_MEMORY_IN_ENGINE)
        if self._known is None or find.value != library().address(_FIND_MEMORY):
            raise BackendError("the engine is not laid out as Unicorn 2.1.4 has it")
        find.value = _core.address("tlb_find_memory")

    def close(self) -> None:
        """Forget the engine, which does not run."""
        if _core is not None and self._known is not None:
            _core.free(self._known)
            self._known = None

    def __del__(self) -> None:
        self.close()

    def enter(self) -> int | None:
        """Say that the engine is about to run on this thread; return what :meth:`leave` needs."""
        if _core is None:
            before, _running.cpu = _running.cpu, self._cpu
            return before
        outer: int | None = _core.enter(self._known)
        return outer

    def leave(self, before: int | None) -> None:
        """Say that it runs no longer."""
        if _core is None:
            _running.cpu = before or 0
        else:
            _core.enter(before)

    def forget_memory(self) -> None:
        """Forget the engine's memory, before some of it is unmapped."""
        if _core is not None:
            _core.forget(self._known)

    def learn_memory(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """
        Learn what memory the engine has, by which its stores become fast.

        :param parts: guest-physical address, size and address in this process of each part.
        """
        if _core is not None:
            for address, size, place in parts:
                _core.learn(self._known, address, size, place)
