# SPDX-License-Identifier: Apache-2.0
"""
Serving another program
-----------------------

The backend as the /dev/kvm of an unmodified program, in that program's process. A preloaded library
(``native/c/soft``) takes the program's system calls and calls the functions here, from whichever
thread makes them. Signals are held back meanwhile.

What the program gets for a handle is the descriptor of a memory file of its own, and the library
names the handle by that file's inode. A vCPU's file is its kvm_run page.
"""

import ctypes
import errno
import os
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Final

from kvmsr.abi import cap_name, ioctls, vm
from kvmsr.backend.soft.backend import SoftBackend
from kvmsr.backend.soft.page import MMAP_SIZE, RunPage
from kvmsr.backend.soft.uaccess import read_struct
from kvmsr.errors import KvmsrError

__all__ = ("Server", "begin")

_FAILURE: Final = 512
_MOST_NOTES: Final = 64
_PROT_READ_WRITE, _MAP_SHARED = 3, 1

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

_Open: Final = ctypes.CFUNCTYPE(ctypes.c_long)
_Ioctl: Final = ctypes.CFUNCTYPE(
    ctypes.c_long, ctypes.c_uint64, ctypes.c_ulong, ctypes.c_size_t, ctypes.c_uint64
)
_Close: Final = ctypes.CFUNCTYPE(None, ctypes.c_uint64)


class _Calls(ctypes.Structure):
    """struct soft_calls of native/c/soft/soft.h."""

    _fields_ = (
        ("settings", ctypes.c_char_p), ("failure", ctypes.c_char * _FAILURE),
        ("open", _Open), ("ioctl", _Ioctl), ("close", _Close),
    )  # fmt: skip


class Server:
    """
    A backend that another program uses.

    :param profile: the kernel that is modelled.
    :param note: called with what the user should know.
    :param handles_signals: this interpreter is the program's, and handles signals.
    """

    def __init__(self, profile: str, note: Callable[[str], None], *, handles_signals: bool) -> None:
        self._backend = SoftBackend(profile, real_time=True)
        self._note = note
        self._noted: set[str] = set()
        self._handles: dict[int, int] = {}
        self._handles_signals = handles_signals

    def open(self) -> int:
        """Return the descriptor of a new system handle."""
        return self._add("kvm", 0, lambda fd: self._backend.open())

    def ioctl(self, inode: int, request: int, argument: int, blocked: int) -> int:
        """
        Do an ioctl; the result may be a new descriptor.

        :param inode: which handle's.
        :param blocked: the signals that the program has blocked in this thread, as bits.
        :raises OSError: with the errno that KVM gives.
        """
        handle = self._handles[inode]
        if request == ioctls.KVM_RUN:
            self._backend.run_held(handle, blocked)
            return 0
        if request == ioctls.KVM_CREATE_VM:
            return self._add("kvm-vm", 0, lambda fd: self._backend.ioctl(handle, request, argument))
        if request == ioctls.KVM_CREATE_VCPU:
            return self._add(
                f"kvm-vcpu:{argument}", MMAP_SIZE,
                lambda fd: self._create_vcpu(handle, argument, fd),
            )  # fmt: skip
        try:
            return self._backend.ioctl(handle, request, argument)
        except OSError as error:
            self._note_refusal(request, argument, error.errno)
            raise

    def close(self, inode: int) -> None:
        """End a handle: no descriptor refers to it any more."""
        handle = self._handles.pop(inode, None)
        if handle is not None:
            self._backend.close(handle)

    def _add(self, name: str, size: int, make: Callable[[int], int]) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._handles[os.fstat(fd).st_ino] = make(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _create_vcpu(self, handle: int, number: int, fd: int) -> int:
        page = RunPage(_mapped(fd, MMAP_SIZE))
        return self._backend.create_vcpu(
            handle, number, page, handles_signals=self._handles_signals
        )

    def _note_refusal(self, request: int, argument: int, error: int | None) -> None:
        """Note what this backend lacks, by the name that KVM gives it."""
        if request == ioctls.KVM_ENABLE_CAP and error == errno.EINVAL:
            name = cap_name(read_struct(vm.EnableCap, argument).cap)
        elif error == errno.ENOTTY:
            name = ioctls.NAMES.get(request, f"ioctl {request:#x}")
        else:
            return
        self.note_once(f"the VMM asked for {name}, which the soft backend does not have")

    def note_once(self, text: str) -> None:
        """Note *text*, unless it or too much has been noted."""
        if text not in self._noted and len(self._noted) < _MOST_NOTES:
            self._noted.add(text)
            self._note(text)


def _mapped(fd: int, size: int) -> memoryview:
    """
    Map a file.

    Not by the ``mmap`` module, which keeps a descriptor of its own: then the vCPU would never go.
    """
    address = _libc.mmap(None, size, _PROT_READ_WRITE, _MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    array = (ctypes.c_char * size).from_address(address)
    weakref.finalize(array, _libc.munmap, address, size).atexit = False
    return memoryview(array).cast("B")


def begin(place: int, profile: str, notes: str, *, handles_signals: bool) -> None:
    """
    Fill in the library's table of calls.

    :param place: the address of the table.
    :param profile: the kernel that is modelled.
    :param notes: the file for what the user should know.
    :param handles_signals: this interpreter is the program's, and handles signals.
    :raises KvmsrError: if the backend cannot be used here.
    """

    def note(text: str) -> None:
        try:
            fd = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError:  # the controller has ended
            return
        os.write(fd, f"{text}\n".encode())
        os.close(fd)

    server = Server(profile, note, handles_signals=handles_signals)

    def guarded(function: Callable[..., Any]) -> Callable[..., int]:
        def call(*arguments: int) -> int:
            try:
                return function(*arguments) or 0
            except OSError as error:
                return -(error.errno or errno.EIO)
            except KvmsrError as error:
                server.note_once(f"the soft backend failed: {error}")
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                server.note_once(
                    f"the soft backend failed: {type(error).__name__}: {error}"
                    f" ({where.filename}:{where.lineno})"
                )
            return -errno.EIO

        return call

    calls = _Calls.from_address(place)
    calls.open = _Open(guarded(server.open))
    calls.ioctl = _Ioctl(guarded(server.ioctl))
    calls.close = _Close(guarded(server.close))
    _kept.append(calls)  # and with it the functions


_kept: Final[list[_Calls]] = []
