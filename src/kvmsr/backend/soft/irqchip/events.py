# SPDX-License-Identifier: Apache-2.0
"""
What happens to a vCPU
----------------------

What a local APIC does to the vCPU that it belongs to.
"""

from typing import Protocol

__all__ = ("LapicEvents",)


class LapicEvents(Protocol):
    """A vCPU, as its local APIC sees it; under the VM's lock."""

    def wake(self) -> None:
        """Something may be deliverable."""

    def nmi(self) -> None:
        """Take an NMI."""

    def smi(self) -> None:
        """Take an SMI."""

    def unhalt(self) -> None:
        """End a HLT, or the next one."""

    def eoi(self, vector: int) -> None:
        """The guest has ended an interrupt."""

    def init(self) -> None:
        """Take an INIT."""

    def sipi(self, vector: int) -> None:
        """Take a start-up IPI."""
