# SPDX-License-Identifier: Apache-2.0
"""
Rules
-----

What shall happen to some MSRs: the unit that a policy is made of.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Op, Reason
from kvmsr.policy.actions import Action, ActionSpec, Counter, Model, Plain, Value, to_action
from kvmsr.policy.bits import Bits
from kvmsr.policy.form import FormError
from kvmsr.policy.selector import MsrSpec, Ranges, merge, parse_msrs
from kvmsr.policy.topology import Scope
from kvmsr.policy.when import When
from kvmsr.text import nearest, shown

__all__ = ("NOWHERE", "Log", "Place", "Rule", "to_log", "to_scope")


class Log(enum.StrEnum):
    """
    Which accesses of a rule are told while the guest runs.

    ``once`` is the first of each MSR and direction; ``change`` those whose value differs from the
    last.
    """

    NEVER = "never"
    ONCE = "once"
    CHANGE = "change"
    ALWAYS = "always"


class Place(NamedTuple):
    """
    Where something was written.

    :ivar file: the file, or "" if it came from none.
    :ivar line: the line in it, from 1; 0 where there is none.
    :ivar key: the key, ``rule[2]`` say.
    :ivar inside: the lines of the keys in it.
    """

    file: str = ""
    line: int = 0
    key: str = ""
    inside: tuple[tuple[str, int], ...] = ()

    def at(self, key: str) -> "Place":
        """Return the place of *key* in it; ``when.cpl`` is where ``when`` is, if need be."""
        lines = dict(self.inside)
        line = lines.get(key) or lines.get(key.partition(".")[0]) or self.line
        return Place(self.file, line, f"{self.key}.{key}" if self.key else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the place as JSON has it."""
        return {"file": self.file, "line": self.line, "key": self.key}


NOWHERE: Final = Place()

# A policy may have ten thousand rules, and looking a member up in its enumeration takes time.
_READ, _KERNEL = Op.READ, Plain.KERNEL


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """
    What shall happen to some MSRs, for reads, for writes, or for both.

    :ivar msrs: the MSRs, as ranges.
    :ivar read: the action for reads; None says nothing of reads.
    :ivar write: the action for writes; None says nothing of writes.
    :ivar reset: what ``shadow`` reads before anything was written, and where a counter begins.
    :ivar bits: what ``shadow`` does of each bit; None keeps every one.
    :ivar scope: which vCPUs share what ``shadow`` keeps, or a counter.
    :ivar when: the condition under which the rule holds; None is always.
    :ivar log: what is told while the guest runs; None is ``once`` for faults.
    :ivar place: where the rule was written: file, line and key.
    :ivar where: where the rule was written, for messages and the summary.
    """

    msrs: Ranges
    read: Action | None
    write: Action | None
    reset: int
    bits: Bits | None
    scope: Scope
    when: When | None
    log: Log | None
    where: str = field(compare=False)
    place: Place = field(compare=False)

    def __init__(
        self,
        msr: MsrSpec | None = None,
        read: ActionSpec | None = None,
        write: ActionSpec | None = None,
        *,
        reset: int | None = None,
        bits: Bits | Mapping[str, str] | None = None,
        scope: str | None = None,
        when: When | Mapping[str, Any] | None = None,
        log: str | None = None,
        where: str = "",
        place: Place = NOWHERE,
        msrs: MsrSpec = (),
    ) -> None:
        # msrs is what dataclasses.replace() hands on of the rule that it copies.
        if read is None and write is None:
            raise PolicyError("a rule needs an action for read, for write, or for both")
        put = object.__setattr__
        put(self, "msrs", parse_msrs(msrs if msr is None else msr))
        put(self, "read", None if read is None else to_action(read, Op.READ))
        put(self, "write", None if write is None else to_action(write, Op.WRITE))
        put(self, "reset", 0 if reset is None else Value(reset).value)
        put(self, "bits", bits if isinstance(bits, Bits | None) else Bits.parse(bits))
        put(self, "scope", to_scope(scope) or Scope.THREAD)
        put(self, "when", when if isinstance(when, When | None) else When.parse(when))
        put(self, "log", to_log(log))
        put(self, "where", where)
        put(self, "place", place)
        self._check()

    def _check(self) -> None:
        """
        Hold the rule to itself.

        :raises FormError: if it says something that its actions leave without a meaning.
        """
        actions = (self.read, self.write)
        if Plain.SHADOW not in actions:
            counts = any(isinstance(action, Counter) for action in actions)
            for key, said in (
                ("bits", self.bits),
                ("reset", self.reset and not counts),
                ("scope", self.scope is not Scope.THREAD and not counts),
            ):
                if said:
                    raise FormError("this is for shadow, and no action here is shadow", (key,))
        if self.when is not None and self.when.value is not None and self.read is not None:
            message = "a read has no value to compare: give reads a rule of their own"
            raise FormError(message, ("when", "value"))
        for action in actions:
            if isinstance(action, Model):
                _check_has(action, self.msrs)

    @property
    def never(self) -> str:
        """Return why the rule can never hold, or ""."""
        return self.when.never if self.when else ""

    def asks_for(self, op: Op) -> bool:
        """Tell whether the rule wants accesses that KVM could complete itself."""
        action = self.read if op == _READ else self.write
        if action is None or action is _KERNEL:
            return False
        when = self.when
        return when is None or (not when.never and when.takes(Reason.FILTER))

    def action(self, op: Op) -> Action | None:
        """Return the action for *op*."""
        return self.read if op == _READ else self.write


def _check_has(action: Model, msrs: Ranges) -> None:
    """
    Hold a rule to the MSRs that its model has.

    :raises PolicyError: naming the first that it has not, and those that it has.
    """
    has = action.cls.registers
    for first, last in msrs:
        missing = next((i for i in range(first, last + 1) if i not in has), None)
        if missing is not None:
            there = ", ".join(
                f"{a:#x}" if a == b else f"{a:#x}-{b:#x}" for a, b in merge((i, i) for i in has)
            )
            raise PolicyError(f"{action} has no MSR {missing:#x}; it has {there}")


def to_scope(word: str | None) -> Scope | None:
    """
    Return the scope called *word*.

    :raises PolicyError: if there is none.
    """
    try:
        return None if word is None else Scope(word)
    except ValueError:
        raise PolicyError(f"{shown(word)} is no scope; {nearest(word, Scope)}") from None


def to_log(word: str | None) -> Log | None:
    """
    Return the way of logging called *word*.

    :raises PolicyError: if there is none.
    """
    try:
        return None if word is None else Log(word)
    except ValueError:
        raise PolicyError(f"{shown(word)} is no way to log; {nearest(word, Log)}") from None
