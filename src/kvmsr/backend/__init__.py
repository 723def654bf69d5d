# SPDX-License-Identifier: Apache-2.0
"""
Backends
--------

Who executes guests. ``kvm`` is the host's /dev/kvm.
"""

from kvmsr.backend._kick import kick_signal
from kvmsr.backend.host import HostBackend
from kvmsr.backend.memory import Memory
from kvmsr.backend.protocol import Backend
from kvmsr.errors import UsageError

__all__ = ("Backend", "HostBackend", "Memory", "kick_signal", "open")

NAMES = ("auto", "kvm")


def open(name: str = "auto") -> Backend:
    """
    Return the backend called *name*.

    :param name: ``kvm``, or ``auto`` for the best there is.
    :raises BackendError: if it cannot be used here; says why and what to do.
    :raises UsageError: if there is no backend of that name.
    """
    if name not in NAMES:
        raise UsageError(f"no backend is called {name!r}; there are {', '.join(NAMES)}")
    backend = HostBackend()
    backend.close(backend.open())
    return backend
