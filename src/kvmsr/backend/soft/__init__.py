# SPDX-License-Identifier: Apache-2.0
"""
The soft backend
----------------

KVM's side of the user-space MSR interface in Python, on a software CPU. Loaded when it is asked
for: what runs on /dev/kvm does without the CPU's library.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kvmsr.backend.soft.backend import SoftBackend

__all__ = ("DEFAULT_PROFILE", "SoftBackend")

DEFAULT_PROFILE: Final = "linux-6.18-amd"


def __getattr__(name: str) -> Any:
    if name == "SoftBackend":
        from kvmsr.backend.soft.backend import SoftBackend

        return SoftBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
