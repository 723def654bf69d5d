# SPDX-License-Identifier: Apache-2.0
"""
Hooks on memory accesses
------------------------

While the engine has a hook on reads or writes, it translates code so that each of its accesses is
slow, for as long as the translation lives. And a hook that is deleted while no guest runs stays in
its lists throughout the next run, and in one of them for ever. So the hooks are made once, and are
in the lists only for the few instructions that are watched.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from kvmsr.errors import BackendError

__all__ = ("AccessHooks",)

_LISTS_IN_ENGINE: Final = (0x430, 0x448)  # of UC_HOOK_MEM_READ and UC_HOOK_MEM_WRITE: first, last


class AccessHooks:
    """
    The hooks of one engine.

    :param engine: the engine's handle.
    :param add: adds a hook on reads and writes of all memory.
    :raises BackendError: if the engine's insides are not as expected.
    """

    def __init__(self, engine: int, add: Callable[[], int]) -> None:
        self._lists: list[Any] = [
            (ctypes.c_uint64 * 2).from_address(engine + at) for at in _LISTS_IN_ENGINE
        ]
        empty = all(not first and not last for first, last in self._lists)
        hook = add()
        self._full = [tuple(each) for each in self._lists]
        if not empty or any(_only(*each) != hook for each in self._full):
            raise BackendError("the engine's hooks are not where Unicorn 2.1.4 has them")
        self._set([(0, 0), (0, 0)])

    def _set(self, lists: list[Any]) -> None:
        for each, ends in zip(self._lists, lists, strict=True):
            each[:] = ends

    def give_back(self) -> None:
        """Put them back for good: the engine is about to be closed, and frees what it has."""
        self._set(self._full)

    @contextmanager
    def there(self) -> Iterator[None]:
        """Return a context in which they are there; no guest may run at its ends."""
        self._set(self._full)
        try:
            yield
        finally:
            self._set([(0, 0), (0, 0)])


def _only(first: int, last: int) -> int:
    """Return the hook of a list that has one: its item has the next item and the hook."""
    if not first or first != last:
        return 0
    return ctypes.c_uint64.from_address(first + 8).value
