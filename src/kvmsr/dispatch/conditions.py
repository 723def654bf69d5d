# SPDX-License-Identifier: Apache-2.0
"""
Conditions at run time
----------------------

Test whether a rule holds for an access, name the key that fails, and count the rule's matches.
"""

import copy
import itertools
from collections.abc import Callable, Mapping

from kvmsr.errors import PolicyError, UsageError
from kvmsr.policy import Access, Op, Rule, Where

__all__ = ("Conditions", "Test")

Test = Callable[[Access], str]
"""
Returns the key of the condition that fails for an access (``rip``, for example, or ``count`` for
*after* and *every*), or "" if the rule holds. An access that meets everything but the count is
counted.
"""


class _Matches:
    """The number of the rule's next match. Taking it is atomic: itertools.count is C code."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = itertools.count(1)


class Conditions:
    """
    The conditions of a policy's rules.

    :param rip: returns a vCPU's RIP; called in that vCPU's thread.
    :param where: returns where its guest is, with callers; called likewise.
    """

    def __init__(
        self,
        rip: Callable[[int], int] | None,
        where: Callable[[int], Where] | None = None,
    ) -> None:
        self._rip, self._where = rip, where
        self._matches: dict[str, _Matches] = {}

    def test(self, rule: Rule, number: int, op: Op) -> Test:
        """
        Return the test of *rule*'s condition for one direction.

        :param number: the rule's position in the policy, from 0.
        :raises UsageError: if the condition needs *rip* or *where*, and there is none.
        """
        when = rule.when
        if when is None:
            return lambda access: ""
        failing, holds_at, holds_for = when.failing, when.holds_at, when.holds_for
        rip, asks_rip, counts = self._rip, when.rip is not None, when.counts
        if asks_rip and rip is None:
            raise UsageError(f"{rule.where} needs the guest's RIP: pass rip= to Dispatcher")
        where, passes = self._where, when.passes
        if passes is not None and where is None:
            raise UsageError(f"{rule.where} needs the guest's callers: pass where= to Dispatcher")
        matches = _Matches()
        if counts:
            self._matches[f"{number}.{op}"] = matches

        def test(access: Access) -> str:
            key = failing(access.vcpu, access.value, access.reason)
            if key:
                return key
            if asks_rip and not holds_at(rip(access.vcpu)):  # type: ignore[misc]
                return "rip"
            if passes is not None and not passes(where(access.vcpu)):  # type: ignore[misc]
                return "caller"
            return "count" if counts and not holds_for(next(matches.next)) else ""

        return test

    def state(self) -> dict[str, int]:
        """Return how often each counting rule has matched, by rule and direction."""
        return {name: next(copy.copy(matches.next)) - 1 for name, matches in self._matches.items()}

    def restore(self, state: Mapping[str, int]) -> None:
        """
        Restore counts returned by :meth:`state`, and continue from there.

        :raises PolicyError: if they belong to another policy's rules.
        """
        if set(state) != set(self._matches):
            raise PolicyError("this state was saved under another policy: its conditions differ")
        for name, count in state.items():
            self._matches[name].next = itertools.count(count + 1)
