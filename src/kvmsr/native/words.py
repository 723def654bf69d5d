# SPDX-License-Identifier: Apache-2.0
"""
Words and their numbers
-----------------------

Translate between the enumerations of policy and dispatch and the numbers that C uses. The numbers
come from the headers, by name, and only here.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from kvmsr.dispatch import Verdict
from kvmsr.native import lib
from kvmsr.policy import Access, Log, Op, Plain, Reason, Scope, Where

__all__ = (
    "ACTIONS",
    "LOGS",
    "OPS",
    "REASONS",
    "SCOPES",
    "VERDICTS",
    "by_number",
    "made_access",
    "made_where",
)

_Word = TypeVar("_Word", bound=enum.Enum)


def _number(name: str) -> int:
    """Return the number of *name* in the headers; 0 if the core was not built."""
    return int(getattr(lib, f"KVMSR_{name}")) if lib is not None else 0


def _numbers(words: Iterable[_Word], prefix: str = "") -> dict[_Word, int]:
    return {word: _number(prefix + word.name) for word in words}


def by_number(numbers: Mapping[_Word, int]) -> tuple[_Word, ...]:
    """Return the words ordered by their numbers, which must be 0, 1, 2 and so on."""
    return tuple(sorted(numbers, key=numbers.__getitem__))


OPS: Final = _numbers(Op)
REASONS: Final = _numbers(Reason)
VERDICTS: Final = _numbers(Verdict)
SCOPES: Final = _numbers(Scope)
ACTIONS: Final = _numbers(Plain, "ACT_")
LOGS: Final = {None: _number("LOG_FAULT_ONCE")} | _numbers(Log, "LOG_")

_OPS, _REASONS = by_number(OPS), by_number(REASONS)
_new: Callable[..., Access] = tuple.__new__  # costs half as much as Access's constructor


def made_access(value: int, vcpu: int, index: int, op: int, reason: int) -> Access:
    """Return the access with the numbers that C uses."""
    return _new(Access, (vcpu, _OPS[op], index, value, _REASONS[reason], None))


def made_where(raw: Any) -> Where | None:
    """Return a ``struct kvmsr_where``, whatever it holds; None if it says nothing."""
    if not raw.known:
        return None
    callers = tuple(raw.callers[0 : min(raw.n_callers, len(raw.callers))])
    return Where(raw.rip, raw.cpl & 3, callers, raw.guesses)
