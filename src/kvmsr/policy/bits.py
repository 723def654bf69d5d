# SPDX-License-Identifier: Apache-2.0
"""
Bits
----

How each bit of a register reacts to reads and writes.
"""

import enum
import re
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from kvmsr.errors import PolicyError
from kvmsr.text import nearest, shown

__all__ = ("ALL_RW", "BitKind", "Bits", "parse_span")

_U64: Final = (1 << 64) - 1
_SPAN: Final = re.compile(r"(\d{1,2})(?:\s*-\s*(\d{1,2}))?")


class BitKind(enum.StrEnum):
    """
    How a bit behaves.

    ``rw`` takes the value written. ``ro`` never changes. ``fault``, a reserved bit, makes a write
    that would change it fault. ``w1c`` and ``w1s`` are cleared or set by writing 1; writing 0 does
    nothing. ``once`` takes the value of the first write and is read-only afterwards. ``lock`` is
    set by writing 1; once it is set, every write to the register faults. ``rc`` is read-only and
    cleared by a read.
    """

    RW = "rw"
    RO = "ro"
    FAULT = "fault"
    W1C = "w1c"
    W1S = "w1s"
    ONCE = "once"
    LOCK = "lock"
    RC = "rc"


class Bits(NamedTuple):
    """A mask for each kind of bit; each of the 64 bits is set in exactly one of them."""

    rw: int = 0
    ro: int = 0
    fault: int = 0
    w1c: int = 0
    w1s: int = 0
    once: int = 0
    lock: int = 0
    rc: int = 0

    @classmethod
    def parse(cls, spec: Mapping[str, str]) -> Self:
        """
        Return the bits for *spec*, such as ``{"0": "lock", "1-2": "rw", "*": "fault"}``.

        ``*`` stands for all bits that are not named; they are ``rw`` if it is missing.

        :raises PolicyError: if a key is not a bit or a range of bits, if two keys overlap, or if a
            kind does not exist.
        """
        masks = dict.fromkeys(BitKind, 0)
        named: dict[str, int] = {}
        for key, kind in spec.items():
            parsed = _kind(kind, key)
            if key == "*":
                continue
            low, high = parse_span(key)
            mask = (2 << high) - (1 << low)
            for other, taken in named.items():
                if mask & taken:
                    raise PolicyError(f"bits {shown(key)} overlap {shown(other)}")
            named[key] = mask
            masks[parsed] |= mask
        rest = _U64 & ~sum(named.values())
        masks[_kind(spec.get("*", BitKind.RW), "*")] |= rest
        return cls(**{kind.value: mask for kind, mask in masks.items()})

    def spec(self) -> dict[str, str]:
        """Return these bits as a policy file writes them; ``*`` stands for the most common kind."""
        masks = dict(zip(BitKind, self, strict=True))
        rest = max(BitKind, key=lambda kind: masks[kind].bit_count())
        spans = [
            (low, f"{low}" if low == high else f"{low}-{high}", kind.value)
            for kind, mask in masks.items()
            if kind is not rest
            for low, high in _spans(mask)
        ]
        return {text: kind for _, text, kind in sorted(spans)} | {"*": rest.value}

    def write(self, old: int, value: int, *, first: bool) -> int | None:
        """
        Return the register's new value after writing *value* over *old*; None if the write faults.

        :param first: whether this is the first write since reset.
        """
        if old & self.lock or (old ^ value) & self.fault:
            return None
        takes = self.rw | (self.once if first else 0)
        sets = self.w1s | self.lock
        keeps = ~(takes | self.w1c | sets)
        return (
            value & takes | old & ~value & self.w1c | (old | value) & sets | old & keeps
        )  # fmt: skip


ALL_RW: Final = Bits(rw=_U64)
"""The default for registers without ``bits``: every bit takes the value written."""


def parse_span(text: str | int) -> tuple[int, int]:
    """
    Return the lowest and the highest bit of ``"1-2"`` or ``"5"``.

    :raises PolicyError: if it is not a bit or a range of bits between 0 and 63.
    """
    match = _SPAN.fullmatch(str(text).strip())
    if not match:
        raise PolicyError(f'{shown(text)} is not a range of bits: write "5", "1-2" or "*"')
    low, high = int(match[1]), int(match[2] or match[1])
    if low > high:
        low, high = high, low  # data sheets write 63:32
    if high > 63:
        raise PolicyError(f"bits {shown(text)}: an MSR has bits 0 to 63")
    return low, high


def _kind(word: str, key: str) -> BitKind:
    try:
        return BitKind(word)
    except ValueError:
        raise PolicyError(
            f"bits {shown(key)}: {shown(word)} is not a kind of bit; {nearest(word, BitKind)}"
        ) from None


def _spans(mask: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for bit in range(64):
        if mask >> bit & 1:
            if spans and spans[-1][1] == bit - 1:
                spans[-1] = (spans[-1][0], bit)
            else:
                spans.append((bit, bit))
    return spans
