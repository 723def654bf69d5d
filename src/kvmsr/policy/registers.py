# SPDX-License-Identifier: Apache-2.0
"""
Declared registers
------------------

What a register model declares about its registers: their MSRs, fields and scope. Policies are
checked against this before a guest runs.
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
    Adjacent bits of a register: ``Field("16-22", "ro", reset=5)``.

    :ivar low: the lowest bit.
    :ivar high: the highest bit.
    :ivar kind: how the bits behave, as in a policy's ``bits``.
    :ivar reset: the initial value of the field.
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
        """Return the mask of the field's bits."""
        return (2 << self.high) - (1 << self.low)


class Register:
    """
    One or more MSRs that a model answers, with their fields::

        status = Register("IA32_THERM_STATUS", "ro", readout=Field("16-22"), valid=Field(31))

    :param msr: the MSRs, as in a policy: a name, a number, a range, or a list. Several MSRs are
        several registers with the same layout: banks.
    :param access: ``rw``, ``ro`` (writes fault) or ``wo`` (reads fault).
    :param others: how the bits outside of all fields behave, as in a policy's ``bits``.
    :param scope: the scope of the register; by default, that of the model.
    :param reset: the initial value of the bits outside of all fields.
    :ivar name: the name of the register in the model.
    :ivar indices: the MSRs, in ascending order.
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
            raise PolicyError(f"access must be rw, ro or wo, not {shown(access)}")
        ranges = parse_msrs(msr)
        if sum(last - first + 1 for first, last in ranges) > MAX_MODEL_MSRS:
            raise PolicyError(f"a register has at most {MAX_MODEL_MSRS} MSRs")
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
        """Return the position of *index* among its MSRs, from 0: the number of the bank."""
        return self.indices.index(index)

    def pack(self, value: int = 0, /, **fields: int) -> int:
        """
        Return *value* with *fields* set.

        :raises ValueError: if there is no such field, or a number does not fit its field.
        """
        if not 0 <= value <= _U64:
            raise ValueError(f"{self.name}: {value:#x} does not fit in 64 bits")
        for name, number in fields.items():
            field = self.fields.get(name)
            if field is None:
                raise ValueError(f"{self.name} has no field {name!r}")
            if not 0 <= number <= field.mask >> field.low:
                raise ValueError(f"{self.name}.{name}: {number:#x} does not fit in the field")
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
    """Return whether *candidate* is the class of a register model."""
    parameters = getattr(candidate, "Parameters", None)
    return (
        isinstance(candidate, type)
        and isinstance(getattr(candidate, "registers", None), Mapping)
        and isinstance(parameters, type)
        and issubclass(parameters, msgspec.Struct)
    )
