# SPDX-License-Identifier: Apache-2.0
"""
Registers
---------

What a VM's guest has written. It outlives the policy under which it was written.
"""

from kvmsr.dispatch.models import Kept
from kvmsr.dispatch.state import Shadows

__all__ = ("Registers",)


class Registers:
    """
    The registers of one VM, which all policies of a run share.

    :ivar shadows: the values that the guest has written to shadowed MSRs.
    :ivar models: the register models.
    :ivar begun: the guest's time when counters began to count, in nanoseconds; None if no policy
        has been in force yet.
    """

    def __init__(self) -> None:
        self.shadows = Shadows()
        self.models = Kept()
        self.begun: int | None = None
