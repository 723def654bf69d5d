# SPDX-License-Identifier: Apache-2.0
"""
Outcomes
--------

What can come of a guest's MSR access, as values that compare equal when the guest and the VMM
could not tell them apart.
"""

from dataclasses import dataclass, field
from typing import Final

from kvmsr.abi import MsrExitReason

__all__ = (
    "DONE", "FILTER", "GP", "INVAL", "UD", "UNKNOWN", "Done", "Fault", "Given", "Outcome", "Value",
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """RDMSR gave *value* without leaving KVM."""

    value: int

    def __repr__(self) -> str:
        return f"value {self.value:#x}"


@dataclass(frozen=True)
class Done:
    """WRMSR, or all of the code, was done without leaving KVM."""

    def __repr__(self) -> str:
        return "done"


@dataclass(frozen=True, eq=False)
class Given:
    """
    KVM gave the access to user space, for *reason*; 0 from a kernel that tells none.

    The latter equals every other: what an item states of it is that it was given.
    """

    reason: MsrExitReason

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Given):
            return False
        return self.reason == other.reason or not (self.reason and other.reason)

    def __hash__(self) -> int:
        return hash(Given)

    def __repr__(self) -> str:
        return f"exit, reason {self.reason.name}"


@dataclass(frozen=True)
class Fault:
    """The guest's exception handler was entered; only the vector counts as equal."""

    vector: int
    error_code: int = field(default=0, compare=False)
    rip: int = field(default=0, compare=False)
    rflags: int = field(default=0, compare=False)

    def __repr__(self) -> str:
        return f"exception {self.vector}({self.error_code:#x}) at {self.rip:#x}"


Outcome = Value | Done | Given | Fault

DONE: Final = Done()
GP: Final = Fault(13)
UD: Final = Fault(6)
INVAL: Final = Given(MsrExitReason.INVAL)
UNKNOWN: Final = Given(MsrExitReason.UNKNOWN)
FILTER: Final = Given(MsrExitReason.FILTER)
