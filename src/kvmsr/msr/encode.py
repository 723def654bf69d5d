# SPDX-License-Identifier: Apache-2.0
"""
Encoding
--------

Make a register's value from its fields, which may be given as decode shows them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from kvmsr.errors import FieldError
from kvmsr.msr.context import Context
from kvmsr.msr.decode import decode
from kvmsr.msr.entry import WHOLE, Msr, MsrField
from kvmsr.msr.forms import check_address, form_of

__all__ = ("Encoded", "encode", "encode_with_notes")

_YES_NO: Final = {"true": 1, "yes": 1, "on": 1, "false": 0, "no": 0, "off": 0}


class Encoded(NamedTuple):
    """
    A value that was made of fields.

    :ivar value: the value.
    :ivar notes: what is to be said about it: how fields were rounded, which units were assumed.
    """

    value: int
    notes: tuple[str, ...]


def encode(
    msr: Msr,
    fields: Mapping[str, int | str],
    start: int = 0,
    others: Mapping[str, int] | None = None,
) -> int:
    """
    Return a value of *msr* with the given fields.

    :param fields: values by field name: numbers, or text as :class:`FieldValue` has it, which may
        be a name of the field's enumeration, ``true``, ``15W`` or a whole address.
    :param start: the value from which all other bits are taken.
    :param others: values of other MSRs, by name, as for :func:`decode`.
    :raises FieldError: if there is no such field, or a value does not fit it.
    """
    return encode_with_notes(msr, fields, start, others).value


def encode_with_notes(
    msr: Msr,
    fields: Mapping[str, int | str],
    start: int = 0,
    others: Mapping[str, int] | None = None,
) -> Encoded:
    """Return what :func:`encode` does, and notes on it. It raises the same errors."""
    value = decode(msr, start).value
    known = {field.name.lower(): field for field in msr.fields}
    given: list[tuple[MsrField, int | str]] = []
    for name, wanted in fields.items():
        field = known.get(name.lower())
        if field is None:
            raise FieldError(f"{msr.name} has no field {name!r}; {_there(msr)}")
        given.append((field, wanted))
    notes: list[str] = []
    # Numbers first: what units mean may depend on them, as a frequency does on its divisor.
    for field, wanted in sorted(given, key=lambda one: not _is_number(*one)):
        context = Context(msr, value, others or {})
        number, note = _number(field, wanted, context)
        _check(msr, field, number)
        value = value & ~field.mask | number << field.shift
        notes += [note] if note else []
        if not _is_number(field, wanted):
            notes += [f"assumed: {name} = {at:#x}" for name, at in context.assumed.items()]
    return Encoded(value, tuple(dict.fromkeys(notes)))


def _there(msr: Msr) -> str:
    names = ", ".join(field.name for field in msr.fields)
    return f"it has {names}" if names else "no fields of it are known"


def _is_number(field: MsrField, wanted: int | str) -> bool:
    if isinstance(wanted, str):
        try:
            int(wanted, 0)
        except ValueError:
            return wanted.lower() in (meaning.lower() for meaning in field.values.values())
    return True


def _number(field: MsrField, wanted: int | str, context: Context) -> tuple[int, str]:
    """Return the number that was wanted, and what is to be said about it, or ""."""
    if isinstance(wanted, int):
        return wanted, ""
    for number, meaning in field.values.items():
        if meaning.lower() == wanted.lower():
            return number, ""
    if field.is_flag and wanted.lower() in _YES_NO:
        return _YES_NO[wanted.lower()], ""
    found = form_of(field).write(wanted, field, context)
    if found is not None:
        return found
    try:
        return int(wanted, 0), ""
    except ValueError:
        raise FieldError(
            f"{context.msr.name}.{field.name} cannot be {wanted!r}: {_takes(field)}"
        ) from None


def _takes(field: MsrField) -> str:
    words = list(field.values.values())
    if words:
        return f"a number, or one of {', '.join(words)}"
    if field.is_flag:
        return "true or false"
    if field.unit:
        return f"a number, or a value in {field.unit}"
    return "an address, 0xfee00000" if field.form in WHOLE else "a number, 5 or 0x5"


def _check(msr: Msr, field: MsrField, number: int) -> None:
    if field.form in WHOLE:
        check_address(msr, field, number)
    most = field.mask >> field.low
    if field.form not in WHOLE and not 0 <= number <= most:
        raise FieldError(f"{msr.name}.{field.name} is {number:#x}: it takes 0 to {most:#x}")
