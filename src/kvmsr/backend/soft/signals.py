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
import threading
from collections.abc import Iterable
from typing import Any, Final

__all__ = ("Watch", "bits", "hold", "pending")

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
_IGNORED: Final = frozenset((signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT))
_HELD: Final = _set(bits(signal.valid_signals()) & ~_SYNCHRONOUS)


_read_end, _write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


class _Held:
    """
    The signals of Python's main thread, held back until :meth:`release`.

    A signal for the whole process may still be taken by another thread. Its handler runs in this
    one all the same; Python then writes to a descriptor, which shows that there was one.

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


class Watch:
    """
    What ends the KVM_RUN of a vCPU: signals for its thread that are not blocked.

    :ivar mask: the signals that are blocked in KVM_RUN only, as bits (KVM_SET_SIGNAL_MASK); None:
        those that are blocked anyway.
    :ivar blocked_outside: for a caller that holds signals back itself: those that it had blocked
        before, as bits.
    :ivar handles: this interpreter handles signals, in its main thread.
    :ivar active: in KVM_RUN, and signals are looked for.
    """

    def __init__(self) -> None:
        self.mask: int | None = None
        self.blocked_outside: int | None = None
        self.handles = True
        self.active = False
        self._blocked = 0
        self._held: _Held | None = None

    @property
    def holds_back(self) -> bool:
        """Whether signals are held back, so that Python's handlers do not run for now."""
        return self._held is not None

    def begin(self) -> None:
        """Look for signals from now on; their handlers run when :meth:`end` lets them."""
        if self.handles and threading.get_ident() == threading.main_thread().ident:
            self._held = _Held()
            self._blocked = self._held.mask
        if self.blocked_outside is not None:
            self._blocked = self.blocked_outside
        if self.mask is not None:
            self._blocked = self.mask
        self.active = (
            self.mask is not None or self._held is not None or self.blocked_outside is not None
        )

    def end(self) -> None:
        """Look for them no longer."""
        if self._held is not None:
            self._held.release()
            self._held = None
        self.active = False

    def came(self) -> bool:
        """Return whether one has come."""
        if not self.active:
            return False
        taken = self._held is not None and self._held.came()
        return taken or _matters(pending() & ~self._blocked)


def _matters(signals: int) -> bool:
    """
    Return whether one of *signals*, as bits, does anything when it comes.

    While it is blocked the kernel keeps it even if it will be ignored, for that may change.
    """
    return any(
        signals >> number - 1 & 1 and not _is_ignored(number)
        for number in range(1, signals.bit_length() + 1)
    )


def _is_ignored(number: int) -> bool:
    action = (ctypes.c_size_t * 32)()  # struct sigaction begins with the handler
    _libc.sigaction(number, None, action)
    return action[0] == signal.SIG_IGN or (action[0] == signal.SIG_DFL and number in _IGNORED)


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
