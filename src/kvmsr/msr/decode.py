# SPDX-License-Identifier: Apache-2.0
"""
Decoding
--------

Convert a register's value to its fields, as numbers and in words.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from kvmsr.errors import FieldError
from kvmsr.msr.context import Context
from kvmsr.msr.entry import WHOLE, Msr, MsrField
from kvmsr.msr.forms import form_of
from kvmsr.msr.summaries import SUMMARIES
from kvmsr.msr.units import Quantity

__all__ = ("Decoded", "FieldValue", "decode", "differences")

_U64: Final = (1 << 64) - 1
_OFF: Final = ("off", "none")
"""Names of values that say no more than 0 does."""


class FieldValue(NamedTuple):
    """
    A field and its value.

    :ivar field: the field.
    :ivar number: the value, as a number; a whole address where the field has the upper bits of one.
    :ivar meaning: the value in other words, such as ``WB`` or ``15 W``, which :func:`encode` takes
        as well; for a flag that is 1, what that means; "" if there are none.
    :ivar quantity: the value with its unit; None if it has none.
    :ivar remark: what else there is to say, such as the size of a range; "" for nothing.
    """

    field: MsrField
    number: int
    meaning: str
    quantity: Quantity | None = None
    remark: str = ""

    @property
    def matters(self) -> bool:
        """Return whether the value says something: it is not 0, or its 0 is more than "off"."""
        if self.number or form_of(self.field).tells_zero:
            return True
        return self.field.values.get(0, "off") not in _OFF

    @property
    def shown(self) -> str:
        """Return the number as text: decimal if it is small, hexadecimal otherwise."""
        in_hex = self.number > 9 or self.field.form in WHOLE
        return f"{self.number:#x}" if in_hex else f"{self.number}"

    @property
    def words(self) -> str:
        """Return what the value means, in words; "" if there are none."""
        return ", ".join(part for part in (self.meaning, self.remark) if part)

    @property
    def said(self) -> str:
        """Return what the value means, and what the field is about."""
        what = self.words
        about = "" if self.field.is_flag else self.field.about
        if not (what and about):
            return what or about
        return f"{what}; {about}" if "(" in about else f"{what} ({about})"

    @property
    def brief(self) -> str:
        """Return name and value in a few words: ``lock``, ``type=WB``, ``base=0xfee00000``."""
        if self.field.is_flag and not self.field.values:
            return self.field.name if self.number else f"{self.field.name}=0"
        return f"{self.field.name}={self.meaning or self.shown}"

    def as_dict(self) -> dict[str, Any]:
        """Return the value as JSON has it."""
        told: dict[str, Any] = {
            "name": self.field.name,
            "bits": self.field.span,
            "value": self.number,
            "meaning": self.meaning,
        }
        if self.field.form in WHOLE:
            told["address"] = f"{self.number:#x}"
        if self.quantity:
            told["computed"] = self.quantity._asdict()
        if self.remark:
            told["remark"] = self.remark
        return told


class Decoded:
    """
    The value of an MSR, field by field.

    :ivar msr: the MSR.
    :ivar value: the value.
    :ivar fields: the fields and their values, from the lowest bit up.
    :ivar summary: the whole value in words; "" if its fields say everything.
    :ivar assumed: values of other MSRs that were assumed, by name: units that were not given.
    :ivar reserved: the reserved bits that are set.
    :ivar unknown: the bits that are set and that the catalog does not describe.
    """

    __slots__ = ("assumed", "fields", "msr", "reserved", "summary", "unknown", "value")

    def __init__(self, msr: Msr, value: int, others: Mapping[str, int]) -> None:
        self.msr = msr
        self.value = value
        context = Context(msr, value, others)
        self.fields = tuple(_read(field, context) for field in msr.fields)
        self.summary = SUMMARIES[msr.summary](context)
        self.assumed = context.assumed
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
        inside = f": {self.brief}" if self.brief else ""
        return f"<{self.msr.name} = {self.value:#x}{inside}>"

    @property
    def brief(self) -> str:
        """Return the fields that say something, and the bits that belong to none, in one line."""
        parts = [one.brief for one in self.fields if one.matters]
        parts += [f"{what}={bits:#x}" for what, bits in self.rest]
        return ", ".join(parts)

    @property
    def rest(self) -> list[tuple[str, int]]:
        """Return the bits that are set and belong to no field: what they are, and which."""
        found = (("reserved", self.reserved), ("unknown", self.unknown))
        return [(what, bits) for what, bits in found if bits]

    def as_dict(self) -> dict[str, Any]:
        """Return the value as JSON has it."""
        told: dict[str, Any] = {
            "index": f"{self.msr.index:#x}",
            "name": self.msr.name,
            "cpus": list(self.msr.cpus),
            "value": f"{self.value:#x}",
            "summary": self.summary,
            "fields": [one.as_dict() for one in self.fields],
            "reserved": f"{self.reserved:#x}",
            "unknown": f"{self.unknown:#x}",
        }
        if self.assumed:
            told["assumed"] = {name: f"{value:#x}" for name, value in self.assumed.items()}
        return told


def _read(field: MsrField, context: Context) -> FieldValue:
    number = field.of(context.value)
    if number in field.values:
        return FieldValue(field, number, field.values[number])
    if field.is_flag:
        return FieldValue(field, number, field.about if number else "")
    return FieldValue(field, number, *form_of(field).read(number, field, context))


def decode(msr: Msr, value: int, others: Mapping[str, int] | None = None) -> Decoded:
    """
    Return the fields of *value*, a value of *msr*.

    :param others: values of other MSRs, by name, that fields depend on: MSR_RAPL_POWER_UNIT,
        MSR_TEMPERATURE_TARGET, and the mask of an MTRR.
    :raises FieldError: if *value* does not fit 64 bits.
    """
    if not 0 <= value <= _U64:
        raise FieldError(f"{msr.name}: {value:#x} does not fit an MSR's 64 bits")
    return Decoded(msr, value, others or {})


def differences(before: Decoded, after: Decoded) -> list[tuple[FieldValue, FieldValue]]:
    """Return the fields in which two values of an MSR differ, from the lowest bit up."""
    pairs = zip(before.fields, after.fields, strict=True)
    return [(one, other) for one, other in pairs if one.number != other.number]
