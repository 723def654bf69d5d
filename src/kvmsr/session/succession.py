# SPDX-License-Identifier: Apache-2.0
"""
The policies of a run
---------------------

The policy in force, those that questions and log events may still come from, those that ``undo``
returns to, and what is left of all the others. A policy may be replaced any number of times, so
each of these has a limit.
"""

import time
from typing import Final

from kvmsr.dispatch import HandlerFailure
from kvmsr.errors import UsageError
from kvmsr.session.in_force import InForce

__all__ = ("Succession",)

_KEPT: Final = 8
"""Number of policies, with the one in force, whose questions and log events are still answered."""

_UNDONE: Final = 16
_MAX_FAILURES: Final = 32
_MAX_NOTES: Final = 100


class Succession:
    """
    The policies of one run, in the order in which they were in force.

    :param first: the first policy.
    :ivar now: the policy in force.
    :ivar since: when it came into force, in seconds since the epoch.
    :ivar replacements: how often the policy was replaced.
    """

    def __init__(self, first: InForce) -> None:
        self.now = first
        self.since = time.time()
        self.replacements = 0
        self._serial = first.serial
        self._before: list[InForce] = []
        self._by_serial = {first.serial: first}
        self._failures: list[HandlerFailure] = []
        self._failure_count = 0
        self._notes: dict[str, None] = {}

    def next_serial(self) -> int:
        """Return a number for a new policy; no policy of the run has had it."""
        self._serial += 1
        return self._serial

    def of(self, serial: int) -> InForce | None:
        """Return the policy with number *serial*; None if it was replaced long ago."""
        return self._by_serial.get(serial)

    def expect(self, new: InForce) -> None:
        """Let questions be answered under *new*, which is about to come into force."""
        self._by_serial[new.serial] = new

    def refuse(self, new: InForce) -> None:
        """Forget *new*, which has not come into force after all."""
        self._by_serial.pop(new.serial, None)

    def follow(self, new: InForce) -> None:
        """Note that *new* has come into force."""
        self._before = [*self._before, self.now][-_UNDONE:]
        self._become(new)

    def previous(self) -> InForce:
        """
        Return the policy before the one in force.

        :raises UsageError: if there is none.
        """
        if not self._before:
            raise UsageError("there is no policy to return to: none has been replaced")
        return self._before[-1]

    def return_to(self, again: InForce) -> None:
        """Note that *again*, the previous policy put in force once more, has come into force."""
        self._before = self._before[:-1]
        self._become(again)

    def _become(self, new: InForce) -> None:
        self.now = new
        self.since = time.time()
        self.replacements += 1
        if len(self._by_serial) > _KEPT:  # the oldest one's questions are long answered
            self._retire(self._by_serial.pop(min(self._by_serial)))
        self._forget_models()

    def _retire(self, old: InForce) -> None:
        self._failures = [*self._failures, *old.failures][:_MAX_FAILURES]
        self._failure_count += old.failure_count
        for note in old.notes:
            if len(self._notes) < _MAX_NOTES:
                self._notes[note] = None

    def _forget_models(self) -> None:
        """Forget the models that no policy can use any more."""
        policies = [*self._by_serial.values(), *self._before]
        for number, registers in self.now.registers():
            found = (one.known().get(number) for one in policies)
            used = [one.models.used for one in found if one is not None]
            registers.models.forget_all_but(set().union(*used))

    # Results

    @property
    def failures(self) -> list[HandlerFailure]:
        """Return the first handler failures."""
        return self._failures + [one for old in self._answering() for one in old.failures]

    @property
    def failure_count(self) -> int:
        """Return the number of handler failures."""
        return self._failure_count + sum(one.failure_count for one in self._answering())

    @property
    def notes(self) -> list[str]:
        """Return the lines that the policies' owner should read."""
        return [*list(self._notes), *(note for one in self._answering() for note in one.notes)]

    def _answering(self) -> list[InForce]:
        """Return the policies that may still answer; another thread may replace one meanwhile."""
        return list(self._by_serial.values())
