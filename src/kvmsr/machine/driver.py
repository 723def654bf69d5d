# SPDX-License-Identifier: Apache-2.0
"""
Controlling a machine
---------------------

What ``kvmsr ctl`` can do to a machine that runs.
"""

import time
from contextlib import AbstractContextManager

from kvmsr.machine.machine import Machine
from kvmsr.session import End, EndKind, RunResult
from kvmsr.session.result import FAILED

__all__ = ("MachineDriver",)


class MachineDriver:
    """
    Controls a machine; see :class:`~kvmsr.session.requests.Driver`.

    :param machine: the machine, which is about to run.
    :param image: the image that it runs, for people.
    """

    def __init__(self, machine: Machine, image: str) -> None:
        self.session = machine.session
        self._machine = machine
        self._image = image
        self._begun = time.monotonic()

    def stop(self, why: str) -> None:
        """End the run, as the action ``stop`` does."""
        self._machine.end(End(EndKind.STOP, FAILED, why))

    def installed(self) -> None:
        """Do nothing: the session sets the filter of the machine's VM itself."""

    def held(self) -> AbstractContextManager[None]:
        """Return a context in which no vCPU runs."""
        return self._machine.held()

    def so_far(self) -> RunResult:
        """Return the result of the run so far."""
        end = End(EndKind.RUNNING, 0, "still running")
        return self.session.result(self._image, end, time.monotonic() - self._begun)
