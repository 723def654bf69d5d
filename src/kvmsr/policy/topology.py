# SPDX-License-Identifier: Apache-2.0
"""
Topology
--------

Which vCPUs share a register: those of one core, of one package, or all of them.
"""

import enum
from dataclasses import dataclass

from kvmsr.errors import PolicyError
from kvmsr.text import shown

__all__ = ("Scope", "Topology")


class Scope(enum.StrEnum):
    """What each has its own copy of a register (Intel SDM volume 4, "Scope"); narrowest first."""

    THREAD = "thread"
    CORE = "core"
    PACKAGE = "package"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Topology:
    """
    How vCPUs are grouped into cores and packages, in the order of their numbers.

    :ivar threads_per_core: at least 1.
    :ivar cores_per_package: at least 1; None for a single package.
    """

    threads_per_core: int = 1
    cores_per_package: int | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            count = getattr(self, name)
            if count is None and name == "cores_per_package":
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise PolicyError(f"{name} is {shown(count)}: it must be 1 or more")

    def unit(self, scope: Scope, vcpu: int) -> int:
        """Return the number, from 0, of the thread, core or package that *vcpu* belongs to."""
        if scope is Scope.THREAD:
            return vcpu
        core = vcpu // self.threads_per_core
        if scope is Scope.CORE:
            return core
        if scope is Scope.VM or self.cores_per_package is None:
            return 0
        return core // self.cores_per_package

    def members(self, scope: Scope, unit: int, vcpus: int) -> tuple[int, ...]:
        """Return those of the vCPUs 0 to *vcpus* - 1 that belong to *unit*."""
        return tuple(vcpu for vcpu in range(vcpus) if self.unit(scope, vcpu) == unit)
