# SPDX-License-Identifier: Apache-2.0
"""
Arguments
---------

Takes what people pass for a path, a size, a time or a function, and refuses anything else by name.
"""

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from kvmsr.errors import UsageError
from kvmsr.machine.board.virtio import Disk
from kvmsr.policy import Policy
from kvmsr.policy.file import load_policy
from kvmsr.text import one_line

__all__ = (
    "CONSOLES",
    "StrPath",
    "refuse_unless",
    "short",
    "to_console",
    "to_count",
    "to_disks",
    "to_function",
    "to_path",
    "to_policy",
    "to_seconds",
    "to_size",
)

StrPath = str | os.PathLike[str]
"""What names a file."""

CONSOLES: Final = ("serial", "virtio")

_SIZE: Final = re.compile(r"([0-9]{1,18}) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def refuse_unless(valid: bool, name: str, value: object, remedy: str) -> None:
    """
    Raise unless *valid*.

    :param name: what the caller calls the argument.
    :param remedy: what to pass instead.
    :raises UsageError: names the argument, the value and the remedy.
    """
    if not valid:
        raise UsageError(f"{name}={short(value)}: {remedy}")


def short(value: object) -> str:
    """Return *value* for a message: in one line, and not too long."""
    return one_line(reprlib.repr(value))


def to_path(value: StrPath, name: str) -> Path:
    """
    Return *value* as a path.

    :raises UsageError: if it is neither a str nor path-like.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    refuse_unless(isinstance(path, str), name, value, "give a path, as a str or a Path")
    return Path(path)


def to_size(value: int | str, name: str) -> int:
    """
    Return *value* in bytes.

    :param value: bytes, or a number with a unit: ``"256M"``, ``"2G"``, ``"1 GiB"``. Units are
        powers of 1024.
    :raises UsageError: if it is neither.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise UsageError(f"{name}={short(value)} is not a size: write 256M or 2G")
        return int(match[1]) * _UNITS[match[2].lower()]
    remedy = "give bytes, or a size such as '256M' or '2G'"
    refuse_unless(_is_int(value), name, value, remedy)
    return value


def to_count(value: int, name: str) -> int:
    """
    Return *value*.

    :raises UsageError: if it is not an int.
    """
    refuse_unless(_is_int(value), name, value, "give a whole number")
    return value


def to_console(value: str) -> str:
    """
    Return *value*.

    :raises UsageError: if it is not one of :data:`CONSOLES`.
    """
    refuse_unless(value in CONSOLES, "console", value, f"give {' or '.join(CONSOLES)}")
    return value


def to_disks(values: Iterable[Disk | StrPath]) -> list[Disk]:
    """
    Return *values* as disks; a path is one that is read-only.

    :raises UsageError: if one is neither.
    """
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes))
    refuse_unless(several, "disks", values, "give disks, as a list")
    disks = [value if isinstance(value, Disk) else Disk(value) for value in values]
    return [
        Disk(to_path(disk.path, f"disks[{number}]"), disk.write)
        for number, disk in enumerate(disks)
    ]


def to_policy(value: Policy | StrPath | None) -> Policy:
    """
    Return *value*, the policy in the file that it names, or an empty policy for None.

    :raises PolicyError: if the file cannot be read or has an error.
    :raises UsageError: if it is something else.
    """
    if value is None:
        return Policy()
    if isinstance(value, (str, os.PathLike)):
        return load_policy(os.fspath(value))
    remedy = "give a Policy, or the path of a policy file"
    refuse_unless(isinstance(value, Policy), "policy", value, remedy)
    return value


def to_seconds(value: float | None, name: str) -> float | None:
    """
    Return *value*, a time in seconds, or None for no limit.

    :raises UsageError: if it is not a number, not more than 0, or not finite.
    """
    if value is None:
        return None
    is_number = _is_int(value) or isinstance(value, float)
    valid = is_number and 0 < value < math.inf
    refuse_unless(valid, name, value, "give seconds, more than 0 and finite")
    return value


def to_function(value: _Function, name: str, takes: str) -> _Function:
    """
    Return *value*.

    :param takes: what it is called with.
    :raises UsageError: if it cannot be called.
    """
    refuse_unless(callable(value), name, value, f"give a function that takes {takes}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
