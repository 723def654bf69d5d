# SPDX-License-Identifier: Apache-2.0
"""
Conditions
----------

When a rule holds. If its condition fails, the rule is skipped and the next one is tried.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec

from kvmsr.errors import PolicyError, SymbolError
from kvmsr.policy.access import Reason, Where
from kvmsr.policy.form import FormError, convert
from kvmsr.text import nearest, shown

__all__ = ("Addresses", "Lookup", "When", "WhenTable")

_U64: Final = (1 << 64) - 1
_HEX: Final = r"(0[xX][0-9a-fA-F_]{1,30}|\d{1,30})"
_SPAN: Final = re.compile(rf"{_HEX}(?:\s*-\s*{_HEX})?")
_NAME: Final = re.compile(r"[A-Za-z_][\w.$]{0,500}")

Lookup = Callable[[str], tuple[int, int]]
"""Returns the first and the last address of a function; raises SymbolError if there is none."""


class Addresses(tuple[int, int]):
    """
    The first and the last of some addresses.

    :ivar name: the function that they belong to, or "".
    """

    name: str

    def __new__(cls, first: int, last: int, name: str = "") -> "Addresses":
        """Make them."""
        made = super().__new__(cls, (first, last))
        made.name = name
        return made

    def __str__(self) -> str:
        return self.name or f"{self[0]:#x}-{self[1]:#x}"


class WhenTable(msgspec.Struct, forbid_unknown_fields=True):
    """A rule's condition."""

    vcpu: int | list[int] | None = None
    cpl: int | list[int] | None = None
    rip: str | None = None
    caller: str | None = None
    value: int | None = None
    mask: int | None = None
    after: int | None = None
    every: int | None = None
    reason: str | list[str] | None = None


@dataclass(frozen=True, slots=True, init=False)
class When:
    """
    A condition. It holds if all of its keys hold; a key that is None always holds.

    A *match* is an access for which all keys but *after* and *every* hold. Matches are counted from
    1, over all MSRs and vCPUs of the rule, reads and writes separately.

    :ivar vcpu: the vCPUs.
    :ivar cpl: the privilege levels. KVM itself faults accesses at any level but 0.
    :ivar rip: the first and the last address of the guest's instruction.
    :ivar caller: the first and the last address of a function: the guest's instruction, or one of
        up to eight calls that lead there, is in it.
    :ivar value: the value written, compared under *mask*; for writes only.
    :ivar mask: the bits to compare; None for all.
    :ivar after: the number of the first match for which the rule holds.
    :ivar every: hold for every Nth match; with *after*, counting from that match, which is the
        first to hold.
    :ivar reason: why KVM handed the access to user space.
    """

    vcpu: tuple[int, ...] | None
    cpl: tuple[int, ...] | None
    rip: Addresses | None
    caller: Addresses | None
    value: int | None
    mask: int | None
    after: int | None
    every: int | None
    reason: tuple[Reason, ...] | None

    def __init__(
        self,
        *,
        vcpu: int | Iterable[int] | None = None,
        cpl: int | Iterable[int] | None = None,
        rip: str | tuple[int, int] | None = None,
        caller: str | tuple[int, int] | None = None,
        value: int | None = None,
        mask: int | None = None,
        after: int | None = None,
        every: int | None = None,
        reason: str | Iterable[str] | None = None,
        symbols: Lookup | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "vcpu", _numbers("vcpu", vcpu, _U64))
        put(self, "cpl", _numbers("cpl", cpl, 3))
        put(self, "rip", _addresses("rip", rip, symbols))
        put(self, "caller", _addresses("caller", caller, symbols))
        put(self, "value", _number("value", value, 0))
        put(self, "mask", _number("mask", mask, 0))
        put(self, "after", _number("after", after, 1))
        put(self, "every", _number("every", every, 1))
        put(self, "reason", _reasons(reason))
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise PolicyError("the condition is empty: leave it out")
        if mask is not None and value is None:
            raise FormError("a mask needs a value to compare", ("mask",))
        if value is not None and mask is not None and value & ~mask:
            message = f"{value:#x} has bits outside the mask {mask:#x}: it never holds"
            raise FormError(message, ("value",))

    @classmethod
    def parse(cls, spec: Mapping[str, Any], symbols: Lookup | None = None) -> "When":
        """
        Return the condition for a table of a policy file.

        :param symbols: looks up names of functions; without it, there must be none.
        :raises FormError: if a key is wrong.
        """
        table = convert(dict(spec), WhenTable)
        given = {key: getattr(table, key) for key in table.__struct_fields__}
        return cls(**given, symbols=symbols)

    def spec(self) -> dict[str, Any]:
        """Return the condition as a policy file writes it."""
        said: dict[str, Any] = {}
        for field in fields(self):
            given = getattr(self, field.name)
            if isinstance(given, Addresses):
                given = f"{given[0]:#x}-{given[1]:#x}"
            elif isinstance(given, tuple):
                given = [str(g) if isinstance(g, Reason) else g for g in given]
            if given is not None:
                said[field.name] = given
        return said

    def __str__(self) -> str:
        said = self.spec()
        for key in ("rip", "caller"):
            if key in said:
                said[key] = getattr(self, key)
        return ", ".join(f"{key} = {_shown(key, value)}" for key, value in said.items())

    @property
    def never(self) -> str:
        """Return why the condition can never hold, or ""."""
        if self.cpl is not None and 0 not in self.cpl:
            return "KVM itself faults accesses at any CPL but 0"
        return ""

    def takes(self, reason: Reason) -> bool:
        """Return whether it can hold for an access that came to user space for *reason*."""
        return self.reason is None or reason in self.reason

    def failing(self, vcpu: int, value: int, reason: Reason) -> str:
        """Return the key that fails for an access, or "". Ignores addresses and counts."""
        if self.vcpu is not None and vcpu not in self.vcpu:
            return "vcpu"
        if self.reason is not None and reason not in self.reason:
            return "reason"
        if self.value is not None and value & (_U64 if self.mask is None else self.mask) != (
            self.value
        ):
            return "value"
        if self.cpl is not None and 0 not in self.cpl:
            return "cpl"
        return ""

    def holds_at(self, rip: int) -> bool:
        """Return whether it holds for an instruction at *rip*."""
        return self.rip is None or self.rip[0] <= rip <= self.rip[1]

    @property
    def passes(self) -> Callable[[Where], bool] | None:
        """Return what tests whether the guest came through *caller*; None if that is no matter."""
        if self.caller is None:
            return None
        first, last = self.caller
        return lambda where: where.passes(first, last)

    @property
    def counts(self) -> bool:
        """Whether it depends on the number of matches."""
        return self.after is not None or self.every is not None

    def holds_for(self, count: int) -> bool:
        """Return whether it holds for match number *count*, from 1."""
        every = self.every or 1
        first = self.after if self.after is not None else every
        return count >= first and (count - first) % every == 0


def _number(key: str, given: Any, least: int) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= _U64:
        message = f"{shown(given)} is out of range: write {least} to 2**64 - 1"
        raise FormError(message, (key,))
    return given


def _numbers(key: str, given: Any, most: int) -> tuple[int, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    numbers = set()
    for one in given:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= most:
            limit = f"0 to {most}" if most < _U64 else "0 or more"
            raise FormError(f"{shown(one)} is out of range: write {limit}", (key,))
        numbers.add(one)
    if not numbers:
        raise FormError("an empty list never holds", (key,))
    return tuple(sorted(numbers))


def _addresses(key: str, given: Any, symbols: Lookup | None) -> Addresses | None:
    if given is None or isinstance(given, Addresses):
        return given
    if isinstance(given, tuple) and len(given) == 2 and all(type(end) is int for end in given):
        first, last = given
    elif isinstance(given, str) and _NAME.fullmatch(given.strip()):
        return _function(key, given.strip(), symbols)
    else:
        match = _SPAN.fullmatch(given.strip()) if isinstance(given, str) else None
        try:
            assert match is not None
            first, last = (int(end, 0) for end in (match[1], match[2] or match[1]))
        except (AssertionError, ValueError):
            message = (
                f"{shown(given)} is neither an address range nor the name of a function: write"
                ' "0x1000-0x1fff"'
            )
            raise FormError(message, (key,)) from None
    if not 0 <= first <= last <= _U64:
        raise FormError(f"{shown(given)} is not a range of 64-bit addresses", (key,))
    return Addresses(first, last)


def _function(key: str, name: str, symbols: Lookup | None) -> Addresses:
    if symbols is None:
        message = (
            f"{shown(name)} is the name of a function, and there are no symbols: add symbols ="
            ' "System.map" to [policy]'
        )
        raise FormError(message, (key,))
    try:
        return Addresses(*symbols(name), name)
    except SymbolError as error:
        raise FormError(str(error), (key,)) from None


def _reasons(given: Any) -> tuple[Reason, ...] | None:
    if given is None:
        return None
    words = [given] if isinstance(given, str) else list(given)
    if not words:
        raise FormError("an empty list never holds", ("reason",))
    for word in words:
        if word not in list(Reason):
            message = f"{shown(word)} is not a reason; {nearest(word, Reason)}"
            raise FormError(message, ("reason",))
    return tuple(reason for reason in Reason if reason in words)


def _shown(key: str, value: Any) -> str:
    return f"{value:#x}" if key in ("value", "mask") else str(value).replace("'", "")
