# SPDX-License-Identifier: Apache-2.0
"""
The host's registers
--------------------

The interface through which ``host`` actions reach the host's MSRs.
"""

from typing import Protocol

__all__ = ("HostMsrs",)


class HostMsrs(Protocol):
    """The host's MSRs. The threads of several vCPUs may call the methods at once."""

    def read(self, cpu: int | None, index: int) -> int:
        """
        Return the value of MSR *index* of a CPU of the host.

        :param cpu: the CPU's number; None for the one that runs this thread.
        :raises OSError: EIO if the CPU faults; any other error if the MSR cannot be reached.
        """

    def write(self, cpu: int | None, index: int, value: int) -> None:
        """
        Write MSR *index* of a CPU of the host.

        :param cpu: the CPU's number; None for the one that runs this thread.
        :raises OSError: EIO if the CPU faults; any other error if the MSR cannot be reached.
        """
