# SPDX-License-Identifier: Apache-2.0
"""
Signals
-------

KVM_RUN ends with EINTR when a signal comes for its thread. Here that is found out by looking: while
a guest runs in Python's main thread, where handlers are called, signals are held back, and looked
for now and then. So no handler runs in the middle of an instruction that is emulated, either.

(The ``signal`` module does the same, but makes sets of enumerations of it, for each KVM_RUN.)
"""

import ctypes
import os
import signal
from collections.abc import Iterable
from typing import Any, Final

__all__ = ("Held", "bits", "hold", "pending")

_libc: Final = ctypes.CDLL(None)
_Set: Final[Any] = ctypes.c_uint64 * 16  # sigset_t


def bits(signals: Iterable[int]) -> int:
    """Return signals as the bits of a mask."""
    return sum(1 << number - 1 for number in set(signals))


def _set(mask: int) -> Any:
    return _Set(mask)


# What the CPU raises because of an instruction cannot wait.
_SYNCHRONOUS: Final = bits(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT)
)
_HELD: Final = _set(bits(signal.valid_signals()) & ~_SYNCHRONOUS)


_read_end, _write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


class Held:
    """
    The signals of Python's main thread, held back until :meth:`release`.

    One for the whole process may still be taken by another thread. Its handler runs in this one all
    the same; that there was one tells the descriptor that Python writes to then.

    :ivar mask: what was masked before, as bits.
    """

    def __init__(self) -> None:
        self.mask = hold()
        self._came = False
        self._former = signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)

    def came(self) -> bool:
        """Return whether another thread has taken a signal."""
        try:
            data = os.read(_read_end, 4096)
        except BlockingIOError:
            return self._came
        self._came = True
        if self._former >= 0:
            os.write(self._former, data)
        return True

    def release(self) -> None:
        """Let them come."""
        self.came()
        signal.set_wakeup_fd(self._former)
        _libc.pthread_sigmask(signal.SIG_SETMASK, _set(self.mask), None)


def hold() -> int:
    """Hold signals back from this thread, for good; return the mask that was in force, as bits."""
    old = _Set()
    _libc.pthread_sigmask(signal.SIG_BLOCK, _HELD, old)
    return int(old[0])


def pending() -> int:
    """Return the signals that are held back, as bits."""
    found = _Set()
    _libc.sigpending(found)
    return int(found[0])
