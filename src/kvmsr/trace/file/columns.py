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

from typing import Final

import numpy as np

from kvmsr.policy import Op, Reason

__all__ = ("COLUMNS", "CPL", "EVENT", "LATENCY", "OPS", "OUTCOMES", "REASONS", "RIP", "VALUE")

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


COLUMNS: Final = [(name, _kind(name)) for name in _ORDER]
"""The columns of a file, in order: each has a name, and a numpy type, "words" or "time"."""
