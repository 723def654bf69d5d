# SPDX-License-Identifier: Apache-2.0
"""
Words and their numbers
-----------------------

What policy and dispatch have words for, C has numbers for. The headers say which; they are looked
up here, by name, and nowhere else.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from kvmsr.dispatch import Verdict
from kvmsr.native import lib
from kvmsr.policy import Access, Log, Op, Plain, Reason, Scope

__all__ = (
    "ACTIONS",
    "LOGS",
    "OPS",
    "REASONS",
    "SCOPES",
    "VERDICTS",
    "access_of",
    "by_number",
    "made_access",
)

_Word = TypeVar("_Word", bound=enum.Enum)


def _number(name: str) -> int:
    """Return the number that the headers give *name*; 0 where the core was not built."""
    return int(getattr(lib, f"KVMSR_{name}")) if lib is not None else 0


def _numbers(words: Iterable[_Word], prefix: str = "") -> dict[_Word, int]:
    return {word: _number(prefix + word.name) for word in words}


def by_number(numbers: Mapping[_Word, int]) -> tuple[_Word, ...]:
    """Return the words in the order of their numbers, which are 0, 1, 2 and so on."""
    return tuple(sorted(numbers, key=numbers.__getitem__))


OPS: Final = _numbers(Op)
REASONS: Final = _numbers(Reason)
VERDICTS: Final = _numbers(Verdict)
SCOPES: Final = _numbers(Scope)
ACTIONS: Final = _numbers(Plain, "ACT_")
LOGS: Final = {None: _number("LOG_FAULT_ONCE")} | _numbers(Log, "LOG_")

_OPS, _REASONS = by_number(OPS), by_number(REASONS)
_new: Callable[..., Access] = tuple.__new__  # half the price of the constructor, once an access


def made_access(value: int, vcpu: int, index: int, op: int, reason: int) -> Access:
    """Return the access that C has in these numbers."""
    return _new(Access, (vcpu, _OPS[op], index, value, _REASONS[reason]))


def access_of(raw: Any) -> Access:
    """Return the access that a ``struct kvmsr_access`` holds."""
    return made_access(raw.value, raw.vcpu, raw.index, raw.op, raw.reason)
