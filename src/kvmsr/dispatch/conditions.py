# SPDX-License-Identifier: Apache-2.0
"""
Conditions at run time
----------------------

Whether a rule holds for an access, and if not, for which key; and how often it has matched.
"""

import copy
import itertools
from collections.abc import Callable, Mapping

from kvmsr.errors import PolicyError, UsageError
from kvmsr.policy import Access, Op, Rule

__all__ = ("Conditions", "Test")

Test = Callable[[Access], str]
"""
Returns the key of the condition that fails for an access (``rip`` say, or ``count`` for *after* and
*every*), or "" if the rule holds. An access for which all else holds is counted.
"""


class _Matches:
    """How often a rule has matched; one step of it cannot be torn apart by another thread."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = itertools.count(1)


class Conditions:
    """
    The conditions of a policy's rules.

    :param rip: gives a vCPU's RIP, called in its thread.
    """

    def __init__(self, rip: Callable[[int], int] | None) -> None:
        self._rip = rip
        self._matches: dict[str, _Matches] = {}

    def test(self, rule: Rule, number: int, op: Op) -> Test:
        """
        Return the test of *rule*, which is number *number* of the policy.

        :raises UsageError: if it asks for RIP, and nobody gives it.
        """
        when = rule.when
        if when is None:
            return lambda access: ""
        failing, holds_at, holds_for = when.failing, when.holds_at, when.holds_for
        rip, asks_rip, counts = self._rip, when.rip is not None, when.counts
        if asks_rip and rip is None:
            raise UsageError(f"{rule.where} asks for RIP: give Dispatcher(rip=…)")
        matches = _Matches()
        if counts:
            self._matches[f"{number}.{op}"] = matches

        def test(access: Access) -> str:
            key = failing(access.vcpu, access.value, access.reason)
            if key:
                return key
            if asks_rip and not holds_at(rip(access.vcpu)):  # type: ignore[misc]
                return "rip"
            return "count" if counts and not holds_for(next(matches.next)) else ""

        return test

    def state(self) -> dict[str, int]:
        """Return how often each rule that counts has matched, by rule and direction."""
        return {name: next(copy.copy(matches.next)) - 1 for name, matches in self._matches.items()}

    def restore(self, state: Mapping[str, int]) -> None:
        """
        Count on from what :meth:`state` told.

        :raises PolicyError: if those are not the rules of this policy.
        """
        if set(state) != set(self._matches):
            raise PolicyError("this is the state of another policy's conditions")
        for name, count in state.items():
            self._matches[name].next = itertools.count(count + 1)
