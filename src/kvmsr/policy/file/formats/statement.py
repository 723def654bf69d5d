# SPDX-License-Identifier: Apache-2.0
"""
Statements
----------

What a file of another program says about an MSR, and the equivalent rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from kvmsr.errors import PolicyError
from kvmsr.msr import catalog
from kvmsr.policy.file.toml import action_text
from kvmsr.policy.policy import Policy
from kvmsr.policy.register_models import BUILT_IN, find_model
from kvmsr.policy.rule import Rule

__all__ = ("Imported", "Statement", "each_msr", "refuse")

_MOST: Final = 65_536
"""The most MSRs of a rule that are written one by one."""

_Said = TypeVar("_Said")


@dataclass(frozen=True, slots=True)
class Statement:
    """
    One statement of the file.

    :ivar line: its line, from 1.
    :ivar index: the MSR that it is about, or None.
    :ivar said: the statement in words.
    :ivar rule: the equivalent rule, or None.
    :ivar lost: what the rule does not express, or why there is no rule; "" if nothing is lost.
    :ivar guess: whether reads return 0 only because the file does not say what the MSR holds.
    """

    line: int
    index: int | None
    said: str
    rule: Rule | None
    lost: str = ""
    guess: bool = False

    @property
    def hint(self) -> str:
        """Return what would answer better than a guessed 0, or "" if nothing is known."""
        if self.rule is None or self.index is None or not self.guess:
            return ""
        models = [
            f'model = "{name}"' for name in BUILT_IN if self.index in find_model(name).registers
        ]
        entry = catalog().get(self.index)
        if entry is not None and entry.fields:
            models.append(f"a value from: kvmsr encode {entry.name}")
        return ", or ".join(models)

    @property
    def becomes(self) -> str:
        """Return what the rule does, or ""."""
        if self.rule is None:
            return ""
        read, write = action_text(self.rule.read), action_text(self.rule.write)
        return read if read == write else f"read {read}, write {write}"

    @property
    def name(self) -> str:
        """Return the MSR's name, or ""."""
        return "" if self.index is None else catalog().name(self.index)


@dataclass(frozen=True, slots=True)
class Imported:
    """
    A whole file.

    :ivar format: the name of its format.
    :ivar statements: its statements, in order.
    """

    format: str
    statements: tuple[Statement, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return the rules, in the order of the file."""
        return tuple(each.rule for each in self.statements if each.rule is not None)


def refuse(source: str, line: int, what: str) -> PolicyError:
    """Return the error for a malformed line."""
    return PolicyError(what, file=source, line=line)


def each_msr(
    policy: Policy, say: Callable[[Rule], _Said | None]
) -> tuple[list[tuple[int, _Said]], list[Rule]]:
    """
    Express each MSR of *policy* in a format. Also return the rules that cannot be expressed.

    :param say: returns a rule in the format, or None if the format cannot express it.
    """
    said: list[tuple[int, _Said]] = []
    left = []
    for rule in policy.rules:
        words = None if rule.when is not None else say(rule)
        if words is None or sum(last - first + 1 for first, last in rule.msrs) > _MOST:
            left.append(rule)
            continue
        said += [(i, words) for first, last in rule.msrs for i in range(first, last + 1)]
    return said, left
