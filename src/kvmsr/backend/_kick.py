# SPDX-License-Identifier: Apache-2.0
"""
The kick signal
---------------

To get a thread out of KVM_RUN, KVM needs a signal to be pending for it; and a signal whose default
action is in force would end the process. So a handler has to be there, and it has to be harmless:

* It must not be a Python or ctypes callback: those need the interpreter, and the signal may arrive
  anywhere. ``abs`` of the C library has the right signature, touches nothing but its argument and
  returns: it is the handler.
* It must never replace a handler of the application. So the signal is searched for, from the top
  of the real-time signals down (libraries that take one, take it from the bottom), and the first
  with its default action is taken.
* SA_RESTART is set: KVM_RUN does not care, and a kick that comes a moment too late must not make
  some other system call of the thread fail.
* The thread must not block it, so each thread unblocks it before it first enters a guest.

The signal by itself would lose against a thread that is about to enter KVM_RUN. ``immediate_exit``
closes that gap: it is set first, KVM_RUN looks at it on entry, and only then the signal is sent.
"""

import ctypes
import functools
import os
import signal
from typing import Annotated, Any

from kvmsr.abi._layout import I32, U64, Layout, layout
from kvmsr.errors import BackendError

__all__ = ("interrupt_thread", "kick_signal")

_SIG_DFL = 0
_SA_RESTART = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sigaction.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)

_SYS_TGKILL = 234  # x86-64


@layout("sigaction")
class _Sigaction(Layout):
    """struct sigaction of the C library on x86-64."""

    sa_handler: U64
    sa_mask: Annotated[Any, ctypes.c_uint64 * 16]
    sa_flags: I32
    sa_restorer: U64


@functools.cache
def kick_signal() -> int:
    """Return the signal that kicks use, with its handler installed."""
    harmless = ctypes.cast(_libc.abs, ctypes.c_void_p).value
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN - 1, -1):
        old = _Sigaction()
        if _libc.sigaction(number, None, ctypes.addressof(old)) != 0 or old.sa_handler != _SIG_DFL:
            continue
        new = _Sigaction(sa_handler=harmless, sa_flags=_SA_RESTART)
        if _libc.sigaction(number, ctypes.addressof(new), None) == 0:
            return number
    raise BackendError(
        "no real-time signal is free for kicking vCPUs: this process handles all of them"
    )


def interrupt_thread(thread_id: int) -> None:
    """
    Interrupt the system call of thread *thread_id* of this process.

    A thread that has ended meanwhile is no error. (tgkill and not pthread_kill: the latter is
    undefined for a thread that has ended.)
    """
    _libc.syscall(_SYS_TGKILL, os.getpid(), thread_id, kick_signal())
