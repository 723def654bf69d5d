# SPDX-License-Identifier: Apache-2.0
"""
The host's registers
--------------------

What ``host`` actions need of whoever can reach the host's MSRs.
"""

from typing import Protocol

__all__ = ("HostMsrs",)


class HostMsrs(Protocol):
    """The host's MSRs; for threads of several vCPUs at once."""

    def read(self, cpu: int | None, index: int) -> int:
        """
        Return MSR *index* of the host's CPU *cpu*; None is the one that runs this thread.

        :raises OSError: EIO if the CPU faults, else whatever keeps it from being read.
        """

    def write(self, cpu: int | None, index: int, value: int) -> None:
        """
        Write MSR *index* of the host's CPU *cpu*; None is the one that runs this thread.

        :raises OSError: EIO if the CPU faults, else whatever keeps it from being written.
        """
