# SPDX-License-Identifier: Apache-2.0
"""
Rules
-----

What happens to some MSRs: the unit that policies consist of.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kvmsr.errors import PolicyError
from kvmsr.msr import catalog
from kvmsr.policy.access import Op, Reason
from kvmsr.policy.actions import Action, ActionSpec, Counter, Model, Plain, Value, to_action
from kvmsr.policy.bits import Bits
from kvmsr.policy.form import FormError
from kvmsr.policy.selector import MsrSpec, Ranges, merge, named_in, parse_msrs
from kvmsr.policy.topology import Scope
from kvmsr.policy.when import When
from kvmsr.text import nearest, shown

__all__ = ("NOWHERE", "Log", "Place", "Rule", "to_log", "to_scope")


class Log(enum.StrEnum):
    """
    Which accesses of a rule are logged while the guest runs.

    ``once`` logs the first access to each MSR in each direction; ``change`` logs accesses whose
    value differs from the last one.
    """

    NEVER = "never"
    ONCE = "once"
    CHANGE = "change"
    ALWAYS = "always"


class Place(NamedTuple):
    """
    A position in a policy file.

    :ivar file: the file, or "" for a rule that does not come from a file.
    :ivar line: the line, from 1; 0 if there is none.
    :ivar key: the key, for example ``rule[2]``.
    :ivar inside: the line of each key inside that one.
    """

    file: str = ""
    line: int = 0
    key: str = ""
    inside: tuple[tuple[str, int], ...] = ()

    def at(self, key: str) -> "Place":
        """Return the position of *key* inside this one; for ``when.cpl``, at least of ``when``."""
        lines = dict(self.inside)
        line = lines.get(key) or lines.get(key.partition(".")[0]) or self.line
        return Place(self.file, line, f"{self.key}.{key}" if self.key else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the position in its JSON form."""
        return {"file": self.file, "line": self.line, "key": self.key}


NOWHERE: Final = Place()

# A policy may have ten thousand rules, and looking up a member of an enum is slow.
_READ, _KERNEL = Op.READ, Plain.KERNEL


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """
    What happens to reads or writes of some MSRs, or both.

    In ``Rule("IA32_THERM_STATUS", model="thermal")`` a register model answers both reads and
    writes. In place of the name, ``Model("thermal", celsius=60.0)`` gives parameters, too.

    :ivar msrs: the MSRs, as ranges.
    :ivar names: the names by which it selects MSRs that are called otherwise on other CPUs.
    :ivar read: the action for reads; None if the rule does not apply to reads.
    :ivar write: the action for writes; None if the rule does not apply to writes.
    :ivar reset: the initial value of a ``shadow`` register or a counter.
    :ivar bits: how each bit of a ``shadow`` register behaves; None for all ``rw``.
    :ivar scope: which vCPUs share a ``shadow`` register or a counter.
    :ivar keep: whether the registers survive a reset of the guest.
    :ivar when: the condition under which the rule holds; None for always.
    :ivar log: which accesses are logged; None logs faults ``once``.
    :ivar place: the rule's position in its file: file, line and key.
    :ivar where: the same in short, for messages and the summary.
    """

    msrs: Ranges
    read: Action | None
    write: Action | None
    reset: int
    bits: Bits | None
    scope: Scope
    keep: bool
    when: When | None
    log: Log | None
    names: Mapping[int, str] = field(compare=False)
    where: str = field(compare=False)
    place: Place = field(compare=False)

    def __init__(
        self,
        msr: MsrSpec | None = None,
        read: ActionSpec | None = None,
        write: ActionSpec | None = None,
        *,
        model: Model | str | None = None,
        reset: int | None = None,
        bits: Bits | Mapping[str, str] | None = None,
        scope: str | None = None,
        keep: bool = False,
        when: When | Mapping[str, Any] | None = None,
        log: str | None = None,
        where: str = "",
        place: Place = NOWHERE,
        msrs: MsrSpec = (),
        names: Mapping[int, str] | None = None,
    ) -> None:
        # dataclasses.replace() passes msrs and names of the rule that it copies.
        if model is not None:
            read = write = _for_both(model, read, write)
        if read is None and write is None:
            raise PolicyError("a rule needs an action for read, for write, or both; or a model")
        put = object.__setattr__
        put(self, "msrs", parse_msrs(msrs if msr is None else msr))
        put(self, "names", named_in(() if msr is None else msr) if names is None else names)
        put(self, "read", None if read is None else to_action(read, Op.READ))
        put(self, "write", None if write is None else to_action(write, Op.WRITE))
        put(self, "reset", 0 if reset is None else Value(reset).value)
        put(self, "bits", bits if isinstance(bits, Bits | None) else Bits.parse(bits))
        put(self, "scope", to_scope(scope) or Scope.THREAD)
        put(self, "keep", keep)
        put(self, "when", when if isinstance(when, When | None) else When.parse(when))
        put(self, "log", to_log(log))
        put(self, "where", where)
        put(self, "place", place)
        self._check()

    def _check(self) -> None:
        """
        Check that the parts of the rule fit together.

        :raises FormError: if a key has no effect with these actions.
        """
        actions = (self.read, self.write)
        if Plain.SHADOW not in actions:
            counts = any(isinstance(action, Counter) for action in actions)
            for key, given, user in (
                ("bits", self.bits, "shadow"),
                ("reset", self.reset and not counts, "shadow or a counter"),
                ("scope", self.scope is not Scope.THREAD and not counts, "shadow or a counter"),
            ):
                if given:
                    raise FormError(f"no effect: neither action is {user}", (key,))
        if self.keep and not any(
            action is Plain.SHADOW or isinstance(action, Counter | Model) for action in actions
        ):
            raise FormError("no effect: neither action has a register to keep", ("keep",))
        if self.when is not None and self.when.value is not None and self.read is not None:
            message = "reads have no value to compare: put them in a rule of their own"
            raise FormError(message, ("when", "value"))
        for action in actions:
            if isinstance(action, Model):
                _check_has(action, self.msrs)

    def name_of(self, index: int) -> str:
        """Return what MSR *index* is called: where no CPU is spoken of, by the rule's own name."""
        chosen = "" if catalog().cpu else self.names.get(index, "")
        return chosen or catalog().name(index)

    @property
    def model(self) -> Model | None:
        """Return the model that answers both reads and writes; None if there is none."""
        return self.read if isinstance(self.read, Model) and self.read == self.write else None

    @property
    def never(self) -> str:
        """Return why the rule can never hold, or ""."""
        return self.when.never if self.when else ""

    def asks_for(self, op: Op) -> bool:
        """Return whether the rule takes accesses that KVM could complete itself."""
        action = self.read if op == _READ else self.write
        if action is None or action is _KERNEL:
            return False
        when = self.when
        return when is None or (not when.never and when.takes(Reason.FILTER))

    def action(self, op: Op) -> Action | None:
        """Return the action for *op*."""
        return self.read if op == _READ else self.write


def _for_both(model: Model | str, read: ActionSpec | None, write: ActionSpec | None) -> ActionSpec:
    """
    Return the action of a rule that has *model* for both directions.

    :raises PolicyError: if there is no such model, it serves one direction only, or the rule has
        another action as well.
    """
    for op, action in ((Op.READ, read), (Op.WRITE, write)):
        if action is not None:
            message = f"model answers {op}s, too: leave out one of the two"
            raise FormError(message, (str(op),))
    answers = model if isinstance(model, Model) else Model(model)
    for op, other in ((Op.READ, Op.WRITE), (Op.WRITE, Op.READ)):
        if op not in answers.serves:
            message = f'{answers} only serves {other}s: use it as {other}, with {op} = "fault"'
            raise FormError(message, ("model",))
    return answers


def _check_has(action: Model, msrs: Ranges) -> None:
    """
    Check that the model of a rule has all of its MSRs.

    :raises PolicyError: if one is missing; lists those that the model has.
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
    Return the scope with the name *word*.

    :raises PolicyError: if there is no such scope.
    """
    try:
        return None if word is None else Scope(word)
    except ValueError:
        raise PolicyError(f"{shown(word)} is not a scope; {nearest(word, Scope)}") from None


def to_log(word: str | None) -> Log | None:
    """
    Return the log setting with the name *word*.

    :raises PolicyError: if there is no such setting.
    """
    try:
        return None if word is None else Log(word)
    except ValueError:
        raise PolicyError(f"{shown(word)} is not a log setting; {nearest(word, Log)}") from None
