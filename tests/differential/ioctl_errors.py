# SPDX-License-Identifier: Apache-2.0
"""
Errors of ioctls
----------------

What comes of each ioctl on each kind of handle, given nothing, an address where nothing is, and one
with a single byte behind it. Each is tried on a VM of its own, before anything was done with it.
"""

import ctypes
import errno
import mmap
from collections.abc import Iterator
from typing import Any, Final

from kvmsr.abi import ioctls
from kvmsr.backend import Backend

__all__ = ("HANDLES", "Arguments", "numbers", "outcome")

HANDLES: Final = ("system", "vm", "vcpu")
_OPENS: Final = frozenset(
    (ioctls.KVM_CREATE_VM, ioctls.KVM_CREATE_VCPU, ioctls.KVM_GET_STATS_FD)
)  # fmt: skip
_SIZE: Final = 0x3FFF << 16


def numbers() -> Iterator[tuple[str, int]]:
    """Give the ioctls by name, less KVM_RUN, also with wrong sizes; and all numbers without one."""
    for number, name in ioctls.NAMES.items():
        if name == "KVM_RUN" or not name.startswith("KVM_") or number >> 8 & 0xFF != ioctls.KVMIO:
            continue
        yield name, number
        yield f"{name} 8 larger", number & ~_SIZE | (number + (8 << 16)) & _SIZE
        yield f"{name} without direction", number & 0x3FFF_FFFF
    known = set(ioctls.NAMES)
    for number in range(0x100):
        if ioctls.KVMIO << 8 | number not in known:
            yield f"number {number:#04x}", ioctls.KVMIO << 8 | number


class Arguments:
    """Arguments that are wrong: ``values`` by name."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        pin = ctypes.c_char.from_buffer(self._pages)
        second = ctypes.addressof(pin) + mmap.PAGESIZE
        libc = ctypes.CDLL(None)
        libc.mprotect(ctypes.c_void_p(second), ctypes.c_size_t(mmap.PAGESIZE), 0)
        self.values = {"NULL": 0, "nowhere": second, "one byte": second - 1}
        self._pin = pin


def outcome(backend: Backend, handle: str, request: int, argument: int) -> Any:
    """Do an ioctl on a fresh handle; return the errno's name, or 0 for whatever is no error."""
    opened = [backend.open()]
    try:
        if handle != "system":
            opened.append(backend.ioctl(opened[0], ioctls.KVM_CREATE_VM))
        if handle == "vcpu":
            opened.append(backend.ioctl(opened[1], ioctls.KVM_CREATE_VCPU, 0))
        result = backend.ioctl(opened[-1], request, argument)
        if request in _OPENS:
            opened.append(result)
        return 0
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        for fd in reversed(opened):
            backend.close(fd)
