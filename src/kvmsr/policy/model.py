# SPDX-License-Identifier: Apache-2.0
"""
Policies
--------

What the owner of a virtual machine wants of each MSR: ordered rules and defaults, as plain values.
"""

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import msgspec

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler, Op
from kvmsr.policy.models import find_model, fit_parameters
from kvmsr.policy.registers import ModelClass, is_model_class
from kvmsr.policy.selector import MsrSpec, Ranges, merge, nearest, parse_msrs, shown
from kvmsr.policy.topology import Scope, Topology

__all__ = (
    "Action",
    "ActionSpec",
    "Defaults",
    "Model",
    "Plain",
    "Policy",
    "Python",
    "Rule",
    "Value",
    "on_read",
    "on_write",
)

_U64: Final = (1 << 64) - 1


class Plain(enum.StrEnum):
    """The actions that need nothing more said."""

    KERNEL = "kernel"
    FAULT = "fault"
    IGNORE = "ignore"
    SHADOW = "shadow"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Value:
    """Reads give *value*, 0 to 2**64 - 1."""

    value: int

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise PolicyError(f"value {self.value!r} is no integer")
        if not 0 <= self.value <= _U64:
            raise PolicyError(f"value {shown(self.value)} does not fit an MSR's 64 bits")

    def __str__(self) -> str:
        return f"value {self.value:#x}"


@dataclass(frozen=True, slots=True)
class Python:
    """A function of the owner's answers; *name* is how messages call it."""

    function: Handler
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise PolicyError(f"handler {self.function!r} cannot be called")
        if not self.name:
            module = getattr(self.function, "__module__", "")
            name = getattr(self.function, "__qualname__", "") or shown(self.function)
            object.__setattr__(self, "name", f"{module}:{name}" if module else name)

    def __str__(self) -> str:
        return f"python {self.name}"


@dataclass(frozen=True, slots=True, init=False)
class Model:
    """
    A register model answers: ``Model("topology.core-thread-count")``, ``Model(MyModel, watts=9)``.

    :ivar cls: its class.
    :ivar parameters: what the policy sets of what the class declares.
    :ivar name: how policies and messages call it.
    :raises PolicyError: if there is no such model, or a parameter does not fit.
    """

    cls: ModelClass
    parameters: msgspec.Struct
    name: str = field(compare=False)

    def __init__(self, model: str | ModelClass, /, **parameters: Any) -> None:
        named = isinstance(model, str)
        cls = find_model(model) if isinstance(model, str) else model
        if not is_model_class(cls):
            raise PolicyError(f"{shown(cls)} is no register model")
        put = object.__setattr__
        put(self, "cls", cls)
        put(self, "parameters", fit_parameters(cls, parameters))
        put(self, "name", model if named else f"{cls.__module__}:{cls.__qualname__}")

    @classmethod
    def of(cls, model: ModelClass, name: str, parameters: Mapping[str, Any]) -> Self:
        """Return the action for a class that policies call *name*."""
        made = cls(model, **parameters)
        object.__setattr__(made, "name", name)
        return made

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple[ModelClass, bytes]:
        """Return what actions that share a model have in common: its class and parameters."""
        return self.cls, msgspec.json.encode(self.parameters, order="deterministic")

    def __str__(self) -> str:
        return f"model {self.name}"


Action = Plain | Value | Python | Model
ActionSpec = Action | str | int | Handler
"""How an action is written in Python: "fault", Plain.FAULT, 5 or Value(5), or a function."""


def to_action(spec: ActionSpec, op: Op) -> Action:
    """
    Return the action that *spec* stands for.

    :raises PolicyError: if there is none, or not for *op*.
    """
    action: Action
    if isinstance(spec, (Plain, Value, Python, Model)):
        action = spec
    elif isinstance(spec, str):
        action = plain(spec)
    elif isinstance(spec, int) and not isinstance(spec, bool):
        action = Value(spec)
    elif callable(spec):
        action = Python(spec)
    else:
        raise PolicyError(f"{spec!r} is no action")
    if isinstance(action, Value) and op == Op.WRITE:
        raise PolicyError("a value can only be read; for writes say ignore, fault or shadow")
    return action


def plain(word: str, allowed: Collection[Plain] = tuple(Plain)) -> Plain:
    """
    Return the plain action called *word*.

    :raises PolicyError: if it is not one of *allowed*.
    """
    for action in allowed:
        if action.value == word:
            return action
    if not isinstance(word, str):
        raise PolicyError(f"{shown(word)} is no action; there are {', '.join(allowed)}")
    hint = nearest(word, allowed)
    if "did you mean" in hint:
        hint += f" There are {', '.join(allowed)}"
    raise PolicyError(f"{shown(word)} is no action here; {hint}")


def to_scope(word: str | None) -> Scope | None:
    """
    Return the scope called *word*.

    :raises PolicyError: if there is none.
    """
    try:
        return None if word is None else Scope(word)
    except ValueError:
        raise PolicyError(f"{shown(word)} is no scope; {nearest(word, Scope)}") from None


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """
    What shall happen to some MSRs, for reads, for writes, or for both.

    :ivar msrs: the MSRs, as ranges.
    :ivar read: the action for reads; None says nothing of reads.
    :ivar write: the action for writes; None says nothing of writes.
    :ivar reset: what ``shadow`` reads before anything was written.
    :ivar scope: which vCPUs share what ``shadow`` keeps.
    :ivar where: where the rule was written, for messages and the summary.
    """

    msrs: Ranges
    read: Action | None
    write: Action | None
    reset: int
    scope: Scope
    where: str = field(compare=False)

    def __init__(
        self,
        msr: MsrSpec | None = None,
        read: ActionSpec | None = None,
        write: ActionSpec | None = None,
        *,
        reset: int | None = None,
        scope: str | None = None,
        where: str = "",
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
        put(self, "scope", to_scope(scope) or Scope.THREAD)
        for action in (self.read, self.write):
            if isinstance(action, Model):
                _check_has(action, self.msrs)
        put(self, "where", where)

    def action(self, op: Op) -> Action | None:
        """Return the action for *op*."""
        return self.read if op == Op.READ else self.write


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


_ON_UNKNOWN: Final = (Plain.FAULT, Plain.IGNORE, Plain.SHADOW, Plain.STOP)
_ON_ERROR: Final = (Plain.FAULT, Plain.IGNORE, Plain.STOP)


@dataclass(frozen=True, slots=True, init=False)
class Defaults:
    """
    What holds where no rule does.

    :ivar unknown: for MSRs that KVM does not know: fault, ignore, shadow or stop.
    :ivar invalid: for values and modes that KVM refuses: the same.
    :ivar on_error: when a handler fails: fault, ignore or stop.
    """

    unknown: Plain
    invalid: Plain
    on_error: Plain

    def __init__(
        self, unknown: str = "fault", invalid: str = "fault", on_error: str = "fault"
    ) -> None:
        put = object.__setattr__
        put(self, "unknown", plain(unknown, _ON_UNKNOWN))
        put(self, "invalid", plain(invalid, _ON_UNKNOWN))
        put(self, "on_error", plain(on_error, _ON_ERROR))


@dataclass(frozen=True, slots=True, init=False)
class Policy:
    """
    Ordered rules and defaults; the first rule that is for the MSR and says something of the
    direction wins.

    :ivar topology: which vCPUs share registers.
    :ivar source: the file it came from, or "".
    """

    rules: tuple[Rule, ...]
    defaults: Defaults
    topology: Topology
    name: str
    description: str
    source: str

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        defaults: Defaults | None = None,
        *,
        topology: Topology | None = None,
        name: str = "",
        description: str = "",
        source: str = "",
    ) -> None:
        put = object.__setattr__
        put(self, "rules", tuple(_placed(rule, n) for n, rule in enumerate(rules)))
        put(self, "defaults", defaults or Defaults())
        put(self, "topology", topology or Topology())
        put(self, "name", name)
        put(self, "description", description)
        put(self, "source", source)


def _placed(rule: Rule, number: int) -> Rule:
    """Return *rule* with a name for messages, if it was written in no file."""
    if not isinstance(rule, Rule):
        raise PolicyError(f"rule[{number}] is {rule!r}, which is no rule")
    if rule.where:
        return rule
    return replace(rule, where=f"rule[{number}]")


def on_read(msr: MsrSpec) -> Callable[[Handler], Rule]:
    """
    Make a rule of a function that answers reads of *msr*::

        @on_read("MSR_CORE_THREAD_COUNT")
        def four_threads(access):
            return 0x0004_0004

        policy = Policy([four_threads])
    """
    return lambda function: Rule(msr, read=Python(function))


def on_write(msr: MsrSpec) -> Callable[[Handler], Rule]:
    """Make a rule of a function that takes writes to *msr*; see :func:`on_read`."""
    return lambda function: Rule(msr, write=Python(function))
