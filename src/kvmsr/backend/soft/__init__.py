# SPDX-License-Identifier: Apache-2.0
"""
The soft backend
----------------

KVM's side of the user-space MSR interface in Python, on a software CPU. The backend itself is in
``backend``, which is imported when it is asked for: what runs on /dev/kvm does without the CPU's
library.
"""

from typing import Final

__all__ = ("DEFAULT_PROFILE",)

DEFAULT_PROFILE: Final = "linux-6.18-amd"
"""The profile that is modelled unless another is asked for."""
