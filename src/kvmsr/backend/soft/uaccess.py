# SPDX-License-Identifier: Apache-2.0
"""
User memory
-----------

What the kernel does with an ioctl's argument: copy_from_user and copy_to_user, which fail with
EFAULT where there is no memory, instead of ending the process.
"""

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("address_of_argument", "read_struct", "read_user", "write_user")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_PID: Final = os.getpid


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_ARGUMENTS: Final = (
    ctypes.c_long, ctypes.POINTER(_IoVec), ctypes.c_ulong, ctypes.POINTER(_IoVec), ctypes.c_ulong,
    ctypes.c_ulong,
)  # fmt: skip
_copy_in: Final = ctypes.CFUNCTYPE(ctypes.c_ssize_t, *_ARGUMENTS, use_errno=True)(
    ("process_vm_readv", _libc)
)
_copy_out: Final = ctypes.CFUNCTYPE(ctypes.c_ssize_t, *_ARGUMENTS, use_errno=True)(
    ("process_vm_writev", _libc)
)


def address_of_argument(arg: "int | Buffer") -> int:
    """Return the address that an ioctl's argument stands for."""
    if isinstance(arg, int):
        return arg
    return ctypes.addressof(ctypes.c_char.from_buffer(arg))


def read_user(address: int, size: int) -> bytes:
    """
    Return *size* bytes at *address* of this process.

    :raises OSError: EFAULT, if not all of them are there.
    """
    data = ctypes.create_string_buffer(size)
    _copy(_copy_in, data, address, size)
    return data.raw


def read_struct(kind: Any, address: int) -> Any:
    """Return the ctypes structure *kind* that lies at *address*; raises as :func:`read_user`."""
    found = kind()
    _copy(_copy_in, found, address, ctypes.sizeof(kind))
    return found


def write_user(address: int, data: Any) -> None:
    """Write bytes or a ctypes structure to *address*; raises as :func:`read_user`."""
    source = ctypes.create_string_buffer(data, len(data)) if isinstance(data, bytes) else data
    _copy(_copy_out, source, address, ctypes.sizeof(source))


def _copy(call: Any, local: Any, address: int, size: int) -> None:
    if not size:
        return
    # The system calls for another process's memory, on this one: they report what a plain access
    # would die of.
    here = _IoVec(ctypes.addressof(local), size)
    there = _IoVec(address, size)
    if call(_PID(), here, 1, there, 1, 0) != size:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
