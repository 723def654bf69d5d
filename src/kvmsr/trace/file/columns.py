# SPDX-License-Identifier: Apache-2.0
"""
The columns of a trace
----------------------

One row for each access that reached user space. In memory, rows are a structured numpy array
(:data:`EVENT`), with numbers for words; in a file, they are columns that other programs can read
without kvmsr, with the words themselves.

A row may also stand for several accesses that were only counted: because the trace's grade asks for
no more, or because they came faster than they could be written. Such a row has no latency.
"""

import re
from typing import Any, Final

import numpy as np

from kvmsr.policy import Op, Reason

__all__ = (
    "CPL", "EVENT", "LATENCY", "MAX_CALLERS", "OPS", "OUTCOMES", "REASONS", "RIP", "VALUE",
    "caller", "columns", "event_type", "is_nullable", "values",
)  # fmt: skip

OPS: Final = tuple(map(str, Op))
REASONS: Final = tuple(map(str, Reason))
OUTCOMES: Final = ("value", "done", "fault", "stop")

VALUE, RIP, CPL, LATENCY = 1, 2, 4, 8
"""Bits of ``has``: which of a row's columns have a value."""

EVENT: Final = np.dtype(
    [
        ("time_ns", "u8"),
        ("guest_ns", "u8"),
        ("value", "u8"),
        ("rip", "u8"),
        ("index", "u4"),
        ("latency_ns", "u4"),
        ("count", "u4"),
        ("pid", "u4"),
        ("rule", "u4"),
        ("vm", "u2"),
        ("vcpu", "u2"),
        ("op", "u1"),
        ("reason", "u1"),
        ("outcome", "u1"),
        ("cpl", "u1"),
        ("has", "u1"),
    ]
)
"""
The type of a row.

``time_ns``: the host's clock, in nanoseconds since the epoch. ``guest_ns``: the VM's own clock,
which the policy's counters follow, in nanoseconds since its guest began. ``value``: read or
written. ``rip``, ``cpl``: where the guest was, and its privilege level. ``index``: the MSR.
``latency_ns``: how long the access took in user space, at most 2**32 - 1. ``count``: the number of
accesses that the row stands for. ``pid``: the process that runs the vCPU. ``rule``: what decided
the access, a number of the trace's rules. ``vm``, ``vcpu``: numbers from 0. ``op``, ``reason`` and
``outcome``: numbers in :data:`OPS`, :data:`REASONS` and :data:`OUTCOMES`. ``has``: see
:data:`VALUE`.
"""

MAX_CALLERS: Final = 8
"""How many callers a row has, at most."""

_WITH_CALLERS: Final = np.dtype(
    [
        *[(name, EVENT[name]) for name in EVENT.names or ()],
        ("callers", "u8", (MAX_CALLERS,)),
        ("n_callers", "u1"),
        ("guesses", "u1"),
    ]
)


def event_type(callers: int) -> np.dtype[Any]:
    """
    Return the type of the rows of a trace with so many callers.

    With callers, a row has also ``callers``: the return addresses of the functions that called the
    guest's, the nearest first; ``n_callers``: how many; and ``guesses``: a bit for each that only
    looks like one, the lowest for the first.
    """
    return _WITH_CALLERS if callers else EVENT


NULLABLE: Final = {"value": VALUE, "rip": RIP, "cpl": CPL, "latency_ns": LATENCY}
WORDS: Final = {"op": OPS, "reason": REASONS, "outcome": OUTCOMES}

WHERE: Final = ("rip", "cpl")
"""The columns that a trace need not have."""

_ORDER: Final = (
    "time", "guest_ns", "pid", "vm", "vcpu", "op", "index", "value", "reason", "outcome", "rule",
    "latency_ns", "count", *WHERE,
)  # fmt: skip


def _kind(name: str) -> str:
    if name == "time":
        return name
    return "words" if name in WORDS or name == "rule" else EVENT[name].str[1:]


_COLUMNS: Final = [(name, _kind(name)) for name in _ORDER]
_CALLER: Final = re.compile(r"caller_([1-8])")


def columns(*, rip: bool, callers: int) -> list[tuple[str, str]]:
    """
    Return the columns of a file, in order: each has a name, and a numpy type, "words" or "time".

    A caller is in a column of its own, ``caller_1`` for the nearest: every program can group by it.

    :param rip: whether it has RIP and CPL.
    :param callers: how many callers it has, at most.
    """
    found = _COLUMNS if rip else _COLUMNS[: -len(WHERE)]
    if callers:
        found = [*found, *[(f"caller_{n + 1}", "u8") for n in range(callers)], ("guesses", "u1")]
    return list(found)


def caller(name: str) -> int | None:
    """Return the number of a caller's column, from 0; None for another column."""
    match = _CALLER.fullmatch(name)
    return int(match[1]) - 1 if match else None


def values(events: np.ndarray[Any, Any], name: str) -> tuple[np.ndarray[Any, Any], Any]:
    """Return the values of a column of numbers, and which rows have one; None if all have."""
    number = caller(name)
    if number is not None:
        return np.ascontiguousarray(events["callers"][:, number]), events["n_callers"] > number
    has = (events["has"] & NULLABLE[name]) != 0 if name in NULLABLE else None
    return np.ascontiguousarray(events[name]), has


def is_nullable(name: str) -> bool:
    """Return whether a row need not have a value in a column."""
    return name in NULLABLE or caller(name) is not None
