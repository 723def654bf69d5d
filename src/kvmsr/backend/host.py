# SPDX-License-Identifier: Apache-2.0
"""
The host's KVM
--------------

The backend over /dev/kvm: each call is the system call of the same name.
"""

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvmsr.abi import ioctls
from kvmsr.abi.run import IMMEDIATE_EXIT_OFFSET
from kvmsr.backend._kick import interrupt_thread, kick_signal
from kvmsr.errors import BackendError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("HostBackend",)

_KVM_RUN: Final = ioctls.KVM_RUN

# ctypes and not fcntl.ioctl: that one copies small buffers, which hides the argument's address
# from the kernel, and newer Pythons' repeats the call at EINTR, which is how a kick arrives.
_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_ioctl.restype = ctypes.c_int

# The same function for KVM_RUN: its three numbers fit ints, and ctypes passes ints as they are a
# third faster than it converts by argtypes.
_run = ctypes.CDLL(None, use_errno=True).ioctl


class _Self(threading.local):
    """The kernel's number of the running thread, asked for once a thread; it can be kicked."""

    def __init__(self) -> None:
        self.thread_id = threading.get_native_id()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {kick_signal()})


class HostBackend:
    """
    The backend that executes guests through the host's /dev/kvm.

    :param device: the device file, in case it is not /dev/kvm.
    """

    name = "kvm"

    def __init__(self, device: str | Path = "/dev/kvm") -> None:
        self._device = Path(device)
        self._self = _Self()
        self._runner: dict[int, int] = {}  # vCPU fd → thread that is in KVM_RUN, or 0
        self._pages: dict[int, mmap.mmap] = {}

    def open(self) -> int:
        """
        Open the device.

        :raises BackendError: if it is missing or may not be opened.
        """
        try:
            return os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(_why_not(self._device, error)) from None

    def ioctl(self, fd: int, request: int, arg: "int | Buffer" = 0) -> int:
        """Do an ioctl; see :meth:`kvmsr.backend.Backend.ioctl`."""
        if request == _KVM_RUN:
            self._runner[fd] = self._self.thread_id
            result: int = _run(fd, _KVM_RUN, 0)
            self._runner[fd] = 0
        else:
            # The argument may have no other reference than this function's: it must keep its own.
            number = arg if isinstance(arg, int) else _address_of(arg)
            result = _ioctl(fd, request, number)
        if result < 0:
            reason = ctypes.get_errno()
            raise OSError(reason, os.strerror(reason))
        return result

    def loop(self, fd: int, run: Callable[[Any], int], argument: Any) -> int:
        """
        Have *run*, which does KVM_RUN on *fd*, run the vCPU, so that :meth:`kick` ends it.

        :param run: returns a negative errno, or what this returns.
        :raises OSError: with that errno.
        """
        self._runner[fd] = self._self.thread_id
        result = run(argument)
        self._runner[fd] = 0
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def mmap(self, fd: int, length: int) -> "Buffer":
        """Map a vCPU's kvm_run page."""
        page = self._pages.get(fd)
        if page is None:
            page = self._pages[fd] = mmap.mmap(fd, length)
        return page

    def close(self, fd: int) -> None:
        """Close a handle, once; a vCPU's mapping goes when its last user lets go of it."""
        self._pages.pop(fd, None)
        self._runner.pop(fd, None)
        try:
            os.close(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise

    def kick(self, fd: int) -> None:
        """Make the KVM_RUN of *fd* return; see the module ``_kick`` for why it does."""
        page = self._pages.get(fd)
        if page is None:
            raise UsageError(f"cannot kick fd {fd}: it is no vCPU that this backend has mapped")
        page[IMMEDIATE_EXIT_OFFSET] = 1
        thread_id = self._runner.get(fd)
        if thread_id:
            interrupt_thread(thread_id)


def _address_of(argument: "Buffer") -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(argument))


def _why_not(device: Path, error: OSError) -> str:
    remedy: dict[int | None, str] = {
        errno.ENOENT: "load kvm_intel or kvm_amd; in a virtual machine or container, have nested"
        " virtualisation or the device passed in",
        errno.EACCES: "let your user into the device's group: sudo usermod -aG kvm $USER, then log"
        " in again",
        errno.EPERM: "the container or sandbox forbids the device: allow it there",
        errno.ENODEV: "the module is loaded but the CPU's virtualisation is off: enable VT-x or"
        " AMD-V in the firmware",
        errno.ENXIO: "load kvm_intel or kvm_amd",
        errno.EBUSY: "another hypervisor uses the CPU's virtualisation: stop it",
    }
    hint = remedy.get(error.errno)
    return f"cannot open {device}: {error.strerror}" + (f"; {hint}" if hint else "")
