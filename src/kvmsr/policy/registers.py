# SPDX-License-Identifier: Apache-2.0
"""
Declared registers
------------------

What a register model says of its registers: which MSRs they are, their fields, who has one of its
own. Policies are checked against it before any guest runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from kvmsr.errors import PolicyError
from kvmsr.policy.bits import Bits, parse_span
from kvmsr.policy.selector import MsrSpec, parse_msrs
from kvmsr.policy.topology import Scope
from kvmsr.text import shown

__all__ = ("MAX_MODEL_MSRS", "Field", "ModelClass", "Register", "is_model_class")

MAX_MODEL_MSRS: Final = 4096
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, init=False)
class Field:
    """
    Some neighbouring bits of a register: ``Field("16-22", "ro", reset=5)``.

    :ivar low: the lowest bit.
    :ivar high: the highest.
    :ivar kind: what its bits do, as in a policy's ``bits``.
    :ivar reset: what it holds at first.
    """

    low: int
    high: int
    kind: str
    reset: int

    def __init__(self, bits: str | int, kind: str = "rw", *, reset: int = 0) -> None:
        low, high = parse_span(bits)
        put = object.__setattr__
        put(self, "low", low)
        put(self, "high", high)
        put(self, "kind", kind)
        put(self, "reset", reset)

    @property
    def mask(self) -> int:
        """Return the field's bits."""
        return (2 << self.high) - (1 << self.low)


class Register:
    """
    One or more MSRs that a model answers for, with their fields::

        status = Register("IA32_THERM_STATUS", "ro", readout=Field("16-22"), valid=Field(31))

    :param msr: the MSRs, as in a policy: a name, a number, a range, or a list. Several are several
        registers that look the same: banks.
    :param access: ``rw``, ``ro`` (writes fault) or ``wo`` (reads fault).
    :param others: what the bits outside all fields do, as in a policy's ``bits``.
    :param scope: what has one of its own; by default what has a model of its own.
    :param reset: what it holds at first, outside its fields.
    :ivar name: what the model calls it.
    :ivar indices: the MSRs, ascending.
    :raises PolicyError: if there is no such MSR, or fields overlap.
    """

    def __init__(
        self,
        msr: MsrSpec,
        access: str = "rw",
        *,
        others: str = "rw",
        scope: str | None = None,
        reset: int = 0,
        **fields: Field,
    ) -> None:
        if access not in ("rw", "ro", "wo"):
            raise PolicyError(f"access {shown(access)}: a register is rw, ro or wo")
        ranges = parse_msrs(msr)
        if sum(last - first + 1 for first, last in ranges) > MAX_MODEL_MSRS:
            raise PolicyError(f"a register of more than {MAX_MODEL_MSRS} MSRs")
        self.name = ""
        self.indices = tuple(i for first, last in ranges for i in range(first, last + 1))
        self.readable, self.writable = access != "wo", access != "ro"
        self.scope = None if scope is None else Scope(scope)
        self.fields = fields
        spans = {f"{f.low}-{f.high}": f.kind for f in fields.values()}
        if len(spans) < len(fields):
            raise PolicyError("two fields have the same bits")
        self.bits = Bits.parse(spans | {"*": others})
        self.reset = self.pack(reset, **{name: f.reset for name, f in fields.items()})

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __repr__(self) -> str:
        return f"<Register {self.name} {', '.join(f'{i:#x}' for i in self.indices[:4])}>"

    def number(self, index: int) -> int:
        """Return which of its MSRs *index* is, from 0: the number of the bank."""
        return self.indices.index(index)

    def pack(self, value: int = 0, /, **fields: int) -> int:
        """
        Return *value* with *fields* put in.

        :raises ValueError: if a field is unknown, or does not fit.
        """
        if not 0 <= value <= _U64:
            raise ValueError(f"{self.name}: {value:#x} does not fit 64 bits")
        for name, number in fields.items():
            field = self.fields.get(name)
            if field is None:
                raise ValueError(f"{self.name} has no field {name!r}")
            if not 0 <= number <= field.mask >> field.low:
                raise ValueError(f"{self.name}.{name}: {number:#x} does not fit its bits")
            value = value & ~field.mask | number << field.low
        return value

    def unpack(self, value: int) -> dict[str, int]:
        """Return the fields of *value*."""
        return {name: (value & f.mask) >> f.low for name, f in self.fields.items()}


class ModelClass(Protocol):
    """What a policy needs to know about a register model; see :mod:`kvmsr.dispatch.models`."""

    # A class satisfies this, not an instance. Type checkers match a nested class against the
    # signature of a method, and a ClassVar against a property.
    def Parameters(self, *args: Any, **fields: Any) -> msgspec.Struct: ...  # noqa: D102, N802
    @property
    def registers(self) -> Mapping[int, Register]: ...  # noqa: D102
    @property
    def scope(self) -> Scope: ...  # noqa: D102


def is_model_class(candidate: object) -> bool:
    """Tell whether *candidate* is a register model's class."""
    parameters = getattr(candidate, "Parameters", None)
    return (
        isinstance(candidate, type)
        and isinstance(getattr(candidate, "registers", None), Mapping)
        and isinstance(parameters, type)
        and issubclass(parameters, msgspec.Struct)
    )
