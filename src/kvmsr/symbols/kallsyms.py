# SPDX-License-Identifier: Apache-2.0
"""
Symbols inside a kernel
-----------------------

A Linux kernel has the names of its own functions (CONFIG_KALLSYMS), compressed, and nothing says
where they are. So they are searched for by what they look like. The format is that of
scripts/kallsyms.c in Linux 4.6 and later, for 64 bits:

* token_table: 256 strings, each ended by a zero. A character that is used in names stands for
  itself, so there is a place with the ten digits one after the other.
* token_index: where each of these strings begins, in 16 bits.
* num_syms: the number of symbols, in 32 bits, and right behind it, aligned to 8 bytes, names: for
  each symbol a length (one byte, or two if the first one is above 127), and so many numbers of
  tokens. Together they make the symbol's type, a letter, and its name.
* relative_base: an address. Each symbol has 32 bits in offsets. In kernels that have per-CPU
  symbols among the others, those from 0 up are addresses, and those below count from
  relative_base - 1 downwards.

Until Linux 6.3 offsets and relative_base are before num_syms, and in later ones behind token_index.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

__all__ = ("read_kallsyms",)

_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_ZERO: Final = ord("0")
_TOKENS: Final = 256
_FEWEST, _MOST = 1000, 1 << 20
_REACH: Final = 32 << 20
_TABLE: Final = 16384  # bytes of a token_table, at most
_TYPES: Final = frozenset(bytes([kind]) for kind in b"aAbBdDrRtTuUvVwWnN?")
_KERNEL: Final = range(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000)
_LOOKS: Final = 16
_LONGEST: Final = 512  # bytes of a token
_TRIES: Final = 64  # a file may have anything


class _Names(NamedTuple):
    """
    The names.

    :ivar at: where num_syms is.
    :ivar symbols: type and name of each symbol, in one string.
    """

    at: int
    symbols: list[bytes]


def read_kallsyms(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return address, type and name of each symbol in a kernel; none if it has none."""
    for index, tokens in _tokens(data):
        names = _names(data, index, tokens)
        if names is not None:
            addresses = _addresses(data, names, index)
            return [
                (address, symbol[:1], symbol[1:])
                for address, symbol in zip(addresses, names.symbols, strict=False)
            ]
    return []


def _tokens(data: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Yield where there may be a token_index, and the tokens."""
    digits, left = -1, _TRIES
    while (digits := data.find(_DIGITS, digits + 1)) >= 0:
        left -= 1
        if not left:
            return
        begin = digits - digits % 4
        for at in range(begin, min(digits + _TABLE, len(data) - 2 * _TOKENS), 4):
            if data[at : at + 2] != b"\0\0":
                continue
            index = struct.unpack_from(f"<{_TOKENS}H", data, at)
            table = digits - index[_ZERO]
            if table < 0 or any(a >= b for a, b in pairwise(index)):
                continue
            end = table + index[-1]
            last = data[end : end + _LONGEST].partition(b"\0")[0]
            tokens = [data[table + a : table + b - 1] for a, b in pairwise(index)] + [last]
            if tokens[_ZERO : _ZERO + 10] == [b"%d" % digit for digit in range(10)]:
                yield at, tokens


def _names(data: bytes, index: int, tokens: list[bytes]) -> _Names | None:
    begin = max(0, index - _REACH) & -8
    heads = struct.unpack_from(f"<{(index - begin) // 8}Q", data, begin)
    left = _TRIES
    for number, count in enumerate(heads):
        if _FEWEST <= count <= _MOST:
            at = begin + 8 * number
            if left and _count(data, at + 8, tokens, _LOOKS) == _LOOKS:
                left -= 1
                symbols = list(_decoded(data, at + 8, tokens, count))
                if len(symbols) == count:
                    return _Names(at, symbols)
    return None


def _count(data: bytes, at: int, tokens: list[bytes], most: int) -> int:
    return sum(1 for _ in _decoded(data, at, tokens, most))


def _decoded(data: bytes, at: int, tokens: list[bytes], count: int) -> Iterator[bytes]:
    """Yield up to *count* symbols, those before the first that is none."""
    for _ in range(count):
        size = data[at] if at < len(data) else 0
        at += 1
        if size & 0x80 and at < len(data):
            size = size & 0x7F | data[at] << 7
            at += 1
        found = b"".join([tokens[one] for one in data[at : at + size]])
        if not size or found[:1] not in _TYPES or not found[1:].isascii() or len(found) < 2:
            return
        yield found
        at += size


def _addresses(data: bytes, names: _Names, index: int) -> list[int]:
    """Return the symbols' addresses; none if they are not found."""
    count = len(names.symbols)
    room = (4 * count + 7) & -8
    before, behind = names.at - 8 - room, (index + 2 * _TOKENS + 7) & -8
    for offsets, base in ((before, names.at - 8), (behind, behind + room)):
        if offsets < 0 or base + 8 > len(data):
            continue
        (address,) = struct.unpack_from("<Q", data, base)
        if address in _KERNEL:
            found = struct.unpack_from(f"<{count}i", data, offsets)
            if sum(one < 0 for one in found) > count // 2:
                return [one if one >= 0 else address - 1 - one for one in found]
            return [address + (one & 0xFFFF_FFFF) for one in found]
    return []
