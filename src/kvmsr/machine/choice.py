# SPDX-License-Identifier: Apache-2.0
"""
Choosing a backend
------------------

For ``auto`` it does not suffice that /dev/kvm can be opened. The probe guest shows whether this KVM
runs ordinary guests.
"""

from kvmsr import backend as backends
from kvmsr.backend import Backend, HostBackend
from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.errors import BackendError
from kvmsr.machine.probe import probe

__all__ = ("choose_backend",)


def choose_backend(
    name: str = "auto", *, profile: str = DEFAULT_PROFILE, real_time: bool = False
) -> tuple[Backend, str]:
    """
    Return the backend called *name* and, if ``auto`` chose soft, the reason; otherwise "".

    The arguments and errors are those of :func:`kvmsr.backend.open`.
    """
    if name != "auto":
        return backends.open(name, profile=profile, real_time=real_time), ""
    why = _why_not_kvm()
    if why is None:
        return backends.open("kvm"), ""
    return backends.open("soft", profile=profile, real_time=real_time), why


def _why_not_kvm() -> str | None:
    backend = HostBackend()
    try:
        verdict = probe(backend)
    except BackendError as error:
        return str(error)
    if verdict.ordinary:
        return None
    failed = ", ".join(f"{case} {what}" for case, what in verdict.failed.items())
    return f"this host's KVM does not run ordinary guests ({failed})"
