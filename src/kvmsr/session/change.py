# SPDX-License-Identifier: Apache-2.0
"""
Changes of the policy
---------------------
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvmsr.policy import Policy

__all__ = ("OWN", "Change")


@dataclass(frozen=True, slots=True)
class Change:
    """
    What a change of the policy involves outside of the session.

    :ivar announce: called with a policy before it comes into force; and with the policy before it,
        if that stays in force after all.
    :ivar installed: waits until another VMM's VMs have the new policy's filter. If it raises, the
        old policy is put in force again.
    """

    announce: Callable[[Policy], None] = lambda policy: None
    installed: Callable[[], None] = lambda: None


OWN: Final = Change()
"""A change of the policy of kvmsr's own machine alone."""
