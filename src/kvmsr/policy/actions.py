# SPDX-License-Identifier: Apache-2.0
"""
Actions
-------

What can happen to an access, as plain values.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import msgspec

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler, Op
from kvmsr.policy.register_models import find_model, fit_parameters
from kvmsr.policy.registers import ModelClass, is_model_class
from kvmsr.text import nearest, shown

__all__ = (
    "SAME_CPU",
    "Action",
    "ActionSpec",
    "Counter",
    "Host",
    "Model",
    "Plain",
    "Python",
    "Value",
    "plain",
    "to_action",
)

_U64: Final = (1 << 64) - 1
_MAX_HZ: Final = 10**12
_SECOND: Final = 10**9

SAME_CPU: Final = "same-cpu"


class Plain(enum.StrEnum):
    """The actions without parameters."""

    KERNEL = "kernel"
    FAULT = "fault"
    IGNORE = "ignore"
    SHADOW = "shadow"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Value:
    """Reads return *value*, 0 to 2**64 - 1."""

    value: int

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise PolicyError(f"value {shown(self.value)} is not an integer")
        if not 0 <= self.value <= _U64:
            raise PolicyError(f"value {shown(self.value)} does not fit an MSR's 64 bits")

    def __str__(self) -> str:
        return f"value {self.value:#x}"


@dataclass(frozen=True, slots=True)
class Python:
    """A Python function answers; *name* is what messages call it."""

    function: Handler
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise PolicyError(f"handler {shown(self.function)} is not callable")
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

    :ivar cls: the model's class.
    :ivar parameters: the values that the policy sets, as the class declares them.
    :ivar name: what policies and messages call the model.
    :raises PolicyError: if there is no such model, or a parameter is unknown or of the wrong type
        or range.
    """

    cls: ModelClass
    parameters: msgspec.Struct
    name: str = field(compare=False)

    def __init__(self, model: str | ModelClass, /, **parameters: Any) -> None:
        named = isinstance(model, str)
        cls = find_model(model) if isinstance(model, str) else model
        if not isinstance(cls, type) or not is_model_class(cls):
            raise PolicyError(f"{shown(cls)} is not a register model")
        put = object.__setattr__
        put(self, "cls", cls)
        put(self, "parameters", fit_parameters(cls, parameters))
        put(self, "name", model if named else f"{cls.__module__}:{cls.__qualname__}")

    @classmethod
    def of(cls, model: ModelClass, name: str, parameters: Mapping[str, Any]) -> Self:
        """Return the action for a class that the policy calls *name*."""
        made = cls(model, **parameters)
        object.__setattr__(made, "name", name)
        return made

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def serves(self) -> tuple[Op, ...]:
        """Return the directions in which not every register of the model faults."""
        registers = self.cls.registers.values()
        reads = not registers or any(register.readable for register in registers)
        writes = not registers or any(register.writable for register in registers)
        return (Op.READ,) * reads + (Op.WRITE,) * writes

    @property
    def key(self) -> tuple[ModelClass, bytes]:
        """Return class and parameters: actions that agree in these share one model."""
        return self.cls, msgspec.json.encode(self.parameters, order="deterministic")

    def __str__(self) -> str:
        return f"model {self.name}"


@dataclass(frozen=True, slots=True)
class Host:
    """
    The host's own register answers; it is read and written through the msr device.

    :ivar cpu: the host's CPU; None for the one that the vCPU runs on at that moment.
    """

    cpu: int | None = None

    def __post_init__(self) -> None:
        wrong = isinstance(self.cpu, bool) or not isinstance(self.cpu, int) or self.cpu < 0
        if self.cpu is not None and wrong:
            raise PolicyError(f"{shown(self.cpu)} is not a CPU: write {SAME_CPU!r} or a number")

    @classmethod
    def parse(cls, spec: str | int) -> Self:
        """
        Return the action for ``host = spec`` in a policy file.

        :raises PolicyError: if *spec* is neither ``same-cpu`` nor a number.
        """
        if isinstance(spec, str) and spec != SAME_CPU:
            hint = f"{nearest(spec, [SAME_CPU])}, or a number"
            raise PolicyError(f"{shown(spec)} is not a CPU of the host; {hint}")
        return cls(None if isinstance(spec, str) else spec)

    def __str__(self) -> str:
        return f"host {SAME_CPU if self.cpu is None else self.cpu}"


@dataclass(frozen=True, slots=True)
class Counter:
    """
    The register counts up *hz* times a second, 1 to 10**12; a write sets it.

    It starts at ``reset`` when the guest starts, and wraps at 2**64.
    """

    hz: int

    def __post_init__(self) -> None:
        wrong = isinstance(self.hz, bool) or not isinstance(self.hz, int)
        if wrong or not 1 <= self.hz <= _MAX_HZ:
            raise PolicyError(f"a counter's frequency is 1 to {_MAX_HZ:,} Hz, not {shown(self.hz)}")

    def ticks(self, elapsed: int) -> int:
        """Return how far it counts in *elapsed* nanoseconds."""
        return elapsed * self.hz // _SECOND & _U64

    def __str__(self) -> str:
        return f"counter {self.hz} Hz"


Action = Plain | Value | Python | Model | Host | Counter
ActionSpec = Action | str | int | Handler
"""An action as written in Python: "fault" or Plain.FAULT, 5 or Value(5), or a function."""


def to_action(spec: ActionSpec, op: Op) -> Action:
    """
    Return the action for *spec*.

    :raises PolicyError: if it is not an action, or not one for *op*.
    """
    action: Action
    if isinstance(spec, (Plain, Value, Python, Model, Host, Counter)):
        action = spec
    elif isinstance(spec, str):
        action = plain(spec)
    elif isinstance(spec, int) and not isinstance(spec, bool):
        action = Value(spec)
    elif callable(spec):
        action = Python(spec)
    else:
        raise PolicyError(f"{shown(spec)} is not an action")
    if isinstance(action, Value) and op == Op.WRITE:
        raise PolicyError("a value can only be read; use ignore, fault or shadow for writes")
    return action


def plain(word: str, allowed: Collection[Plain] = tuple(Plain)) -> Plain:
    """
    Return the plain action with the name *word*.

    :raises PolicyError: if it is not one of *allowed*.
    """
    for action in allowed:
        if action.value == word:
            return action
    if not isinstance(word, str):
        raise PolicyError(f"{shown(word)} is not an action; there are {', '.join(allowed)}")
    hint = nearest(word, allowed)
    if "did you mean" in hint:
        hint += f" There are {', '.join(allowed)}"
    raise PolicyError(f"{shown(word)} is not an action here; {hint}")
