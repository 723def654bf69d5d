# SPDX-License-Identifier: Apache-2.0
"""
Conversion to declared types
----------------------------

Checks values from outside against declared types, and reports errors in the terms of a policy file.
"""

import re
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from kvmsr.errors import PolicyError
from kvmsr.text import nearest

__all__ = ("FormError", "Path", "convert", "convert_keys")

_T = TypeVar("_T")

_hints = lru_cache(maxsize=32)(get_type_hints)

Path = tuple[str | int, ...]
"""The position of a value in a document: ``("rule", 2, "read")``."""


class FormError(PolicyError):
    """
    A value of the wrong type or range.

    :ivar path: the position of the error in the value.
    """

    def __init__(self, message: str, path: Path) -> None:
        self.path = path
        super().__init__(message)


def convert(raw: Any, form: type[_T]) -> _T:
    """
    Convert *raw* to type *form*.

    :raises FormError: if it does not have that type.
    """
    try:
        return msgspec.convert(raw, form)
    except msgspec.ValidationError as error:
        match = re.fullmatch(r"(.*?)(?: - at `\$(.*)`)?", str(error), re.DOTALL)
        assert match is not None
        raise _in_words(match[1], _path(match[2] or ""), form) from None
    except (ValueError, TypeError, ArithmeticError) as error:  # of a model's __post_init__
        raise FormError(str(error), ()) from None


def convert_keys(
    raw: dict[str, Any], form: type[msgspec.Struct]
) -> tuple[dict[str, Any], list[FormError]]:
    """
    Convert the table *raw* key by key, for the structure *form*.

    Return the keys that are right, and an error for each that is not, or is missing.
    """
    hints = _hints(form)
    given: dict[str, Any] = {}
    errors: list[FormError] = []
    for key, value in raw.items():
        if key not in hints:
            errors.append(FormError(f"unknown key; {nearest(key, hints)}", (key,)))
            continue
        try:
            given[key] = convert(value, hints[key])
        except FormError as error:
            errors.append(FormError(str(error), (key, *error.path)))
    missing = [name for name in _required(form) if name not in raw]
    errors += (FormError(f"the key {name!r} is missing", ()) for name in missing)
    return given, errors


@lru_cache(maxsize=32)
def _required(form: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(form) if field.required)


def _in_words(what: str, path: Path, form: type) -> FormError:
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown:
        known = _fields_at(form, path)
        hint = nearest(unknown[1], known) if known else "there are none here"
        return FormError(f"unknown key; {hint}", (*path, unknown[1]))
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        return FormError(f"the key {missing[1]!r} is missing", path)
    if path == ("rule",) and "got `object`" in what:
        return FormError("rules are an array of tables: write [[rule]], with two brackets", path)
    for word, toml in (
        ("Expected", "expected"),
        (" | null", ""),
        ("object", "table"),
        ("bool", "boolean"),
        ("str", "string"),
        ("int", "integer"),
        ("`", ""),
    ):
        what = what.replace(word, toml)
    return FormError(what.replace(" | ", " or "), path)


def _fields_at(form: Any, path: Path) -> tuple[str, ...]:
    """Return the keys of the table at *path* in the type *form*."""
    struct = _struct_in(form)
    for part in path:
        if struct is not None and isinstance(part, str):
            struct = _struct_in(_hints(struct).get(part))
    return () if struct is None else struct.__struct_fields__


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    """Return the structure that *hint* is, or that is an element of the list or union *hint*."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    return next((found for arg in get_args(hint) if (found := _struct_in(arg))), None)


def _path(text: str) -> Path:
    """Parse msgspec's notation, ``.rule[2].read``."""
    # msgspec writes [...] for a key of a table with arbitrary keys: name the table instead.
    parts = re.findall(r"\.([^.\[]+)|\[(\d+)\]", text.split("[...]")[0])
    return tuple(int(number) if number else name for name, number in parts)
