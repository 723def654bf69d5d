# SPDX-License-Identifier: Apache-2.0
"""
Backends
--------

Who executes guests. ``kvm`` is the host's /dev/kvm, ``soft`` a model of KVM on a software CPU.
"""

from kvmsr.backend._kick import kick_signal
from kvmsr.backend.host import HostBackend
from kvmsr.backend.memory import Memory
from kvmsr.backend.protocol import Backend, KeepsCode, ServesInPlace
from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.errors import BackendError, UsageError

__all__ = (
    "Backend",
    "HostBackend",
    "KeepsCode",
    "Memory",
    "ServesInPlace",
    "kick_signal",
    "open",
)

NAMES = ("auto", "kvm", "soft")


def open(name: str = "auto", *, profile: str = DEFAULT_PROFILE, real_time: bool = False) -> Backend:
    """
    Return the backend called *name*.

    :param name: ``kvm``, ``soft``, or ``auto`` for kvm where it can be opened, else soft.
    :param profile: the kernel that soft models.
    :param real_time: let a guest that sleeps on soft really sleep.
    :raises BackendError: if it cannot be used here; says why and what to do.
    :raises UsageError: if there is no backend or profile of that name.
    """
    if name not in NAMES:
        raise UsageError(f"no backend is called {name!r}; there are {', '.join(NAMES)}")
    if name == "soft":
        return _soft(profile, real_time)
    backend = HostBackend()
    try:
        backend.close(backend.open())
    except BackendError:
        if name == "kvm":
            raise
        return _soft(profile, real_time)
    return backend


def _soft(profile: str, real_time: bool) -> Backend:
    from kvmsr.backend.soft.backend import SoftBackend

    return SoftBackend(profile, real_time=real_time)
