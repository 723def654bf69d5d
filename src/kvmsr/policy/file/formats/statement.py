# SPDX-License-Identifier: Apache-2.0
"""
Statements
----------

What a file of another program's says of an MSR, and the rule that means the same here.
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
"""MSRs of one rule that are written out, one by one."""

_Said = TypeVar("_Said")


@dataclass(frozen=True, slots=True)
class Statement:
    """
    One thing that the file says.

    :ivar line: where, from 1.
    :ivar index: of which MSR; None: of none.
    :ivar said: what it says, in words.
    :ivar rule: the rule that is made of it; None: none.
    :ivar lost: what no rule can say of it, or why there is none; "" if all is said.
    :ivar guess: whether the 0 that reads get under the rule is a guess, and not what the file says.
    """

    line: int
    index: int | None
    said: str
    rule: Rule | None
    lost: str = ""
    guess: bool = False

    @property
    def hint(self) -> str:
        """Return what gives a better value than a guessed 0, or "" if nothing is known to."""
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

    :ivar format: which format it has.
    :ivar statements: what it says, in its order.
    """

    format: str
    statements: tuple[Statement, ...]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return the rules, in the file's order."""
        return tuple(each.rule for each in self.statements if each.rule is not None)


def refuse(source: str, line: int, what: str) -> PolicyError:
    """Return the error for a line that is not as the format wants it."""
    return PolicyError(what, file=source, line=line)


def each_msr(
    policy: Policy, say: Callable[[Rule], _Said | None]
) -> tuple[list[tuple[int, _Said]], list[Rule]]:
    """
    Return what a format says of each MSR of *policy*, and the rules that it cannot hold.

    :param say: returns what the format says instead of a rule; None where it has no words for it.
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
