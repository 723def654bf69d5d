# SPDX-License-Identifier: Apache-2.0
"""
Decoding
--------

Convert a register's value to its fields, and back.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from kvmsr.errors import FieldError
from kvmsr.msr.entry import Msr, MsrField

__all__ = ("Decoded", "FieldValue", "decode", "encode")

_U64: Final = (1 << 64) - 1


class FieldValue(NamedTuple):
    """
    A field and its value.

    :ivar field: the field.
    :ivar number: the value, as a number.
    :ivar meaning: the value's meaning, in words; "" if nothing is known about it.
    """

    field: MsrField
    number: int
    meaning: str


class Decoded:
    """
    The value of an MSR, field by field.

    :ivar msr: the MSR.
    :ivar value: the value.
    :ivar fields: the fields and their values, from the lowest bit up.
    :ivar reserved: the reserved bits that are set.
    :ivar unknown: the bits that are set and that the catalog does not describe.
    """

    __slots__ = ("fields", "msr", "reserved", "unknown", "value")

    def __init__(self, msr: Msr, value: int) -> None:
        self.msr = msr
        self.value = value
        self.fields = tuple(
            FieldValue(field, number, field.meaning(number))
            for field in msr.fields
            for number in (field.of(value),)
        )
        described = sum(field.mask for field in msr.fields)
        self.reserved = value & msr.reserved
        self.unknown = value & ~described & ~msr.reserved & _U64

    def __getitem__(self, name: str) -> int:
        """Return the number in field *name*. Raise KeyError if there is no such field."""
        for found in self.fields:
            if found.field.name == name:
                return found.number
        raise KeyError(name)

    def __iter__(self) -> Iterator[FieldValue]:
        return iter(self.fields)

    def __repr__(self) -> str:
        parts = [
            f"{name.name}={number}" + (f" ({meaning})" if meaning else "")
            for name, number, meaning in self.fields
            if number or name.values
        ]
        if self.reserved:
            parts.append(f"reserved={self.reserved:#x}")
        if self.unknown:
            parts.append(f"unknown={self.unknown:#x}")
        inside = ": " + ", ".join(parts) if parts else ""
        return f"<{self.msr.name} = {self.value:#x}{inside}>"


def decode(msr: Msr, value: int) -> Decoded:
    """
    Return the fields of *value*, a value of *msr*.

    :raises FieldError: if *value* does not fit 64 bits.
    """
    if not 0 <= value <= _U64:
        raise FieldError(f"{msr.name}: {value:#x} does not fit an MSR's 64 bits")
    return Decoded(msr, value)


def encode(msr: Msr, fields: Mapping[str, int | str], start: int = 0) -> int:
    """
    Return a value of *msr* with the given fields.

    :param fields: values by field name: numbers, or names of the field's enumeration.
    :param start: the value from which all other bits are taken.
    :raises FieldError: if there is no such field, or a value does not fit it.
    """
    value = decode(msr, start).value
    known = {field.name: field for field in msr.fields}
    for name, wanted in fields.items():
        field = known.get(name)
        if field is None:
            there = f"it has {', '.join(known)}" if known else "no fields of it are known"
            raise FieldError(f"{msr.name} has no field {name!r}; {there}")
        number = wanted if isinstance(wanted, int) else _number(msr, field, wanted)
        if not 0 <= number <= field.mask >> field.low:
            most = field.mask >> field.low
            raise FieldError(f"{msr.name}.{name} is {number:#x}: it takes 0 to {most:#x}")
        value = value & ~field.mask | number << field.low
    return value


def _number(msr: Msr, field: MsrField, text: str) -> int:
    for number, meaning in field.values.items():
        if meaning.lower() == text.lower():
            return number
    try:
        return int(text, 0)
    except ValueError:
        words = ", ".join(field.values.values())
        hint = f": a number, or one of {words}" if words else ": a number, 5 or 0x5"
        raise FieldError(f"{msr.name}.{field.name} cannot be {text!r}{hint}") from None
