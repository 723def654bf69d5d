# SPDX-License-Identifier: Apache-2.0
"""
Selectors
---------

The MSRs that a rule applies to: a number, a range, a name, or a list of these.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Final

from kvmsr.errors import PolicyError, UnknownMsrError
from kvmsr.msr import catalog
from kvmsr.text import shown

__all__ = ("MAX_INDEX", "MsrSpec", "Ranges", "merge", "named_in", "parse_msrs")

MAX_INDEX: Final = (1 << 32) - 1

Ranges = tuple[tuple[int, int], ...]
"""First and last MSR of each range, in ascending order, with gaps between ranges."""

MsrSpec = int | str | Iterable[int | str | tuple[int, int]]
"""
A selector as written in a policy: 0x35, "0x600-0x63f", "IA32_PAT", "IA32_MC*_CTL", or a list of
these. In a list, (5, 9) is the range from 5 to 9.
"""

# Numbers as in TOML. Longer ones are out of range anyway, and Python refuses to parse the longest.
_NUMBER: Final = r"(?:0[xX][0-9a-fA-F](?:_?[0-9a-fA-F]){0,30}|0|[1-9](?:_?[0-9]){0,30})"
_NAME: Final = re.compile(r"[A-Za-z_]\w{0,99}")
_GLOB: Final = re.compile(r"(?=.*[*?\[])(?=.*[A-Za-z])[\w*?\[\]!-]{1,100}")
_TEXTS: Final = (str, bytes, bytearray, memoryview)  # iterable, but not lists
_RANGE: Final = re.compile(rf"({_NUMBER})(?:\s*-\s*({_NUMBER}))?")


def parse_msrs(spec: MsrSpec) -> Ranges:
    """
    Return the MSRs that *spec* selects.

    :raises PolicyError: if *spec* is malformed, selects nothing, or there is no such MSR.
    """
    is_list = isinstance(spec, Iterable) and not isinstance(spec, _TEXTS)
    items = list(spec) if is_list else [spec]  # type: ignore[arg-type]
    if not items:
        raise PolicyError("an empty list selects no MSR")
    return merge(span for item in items for span in _one(item))


def named_in(spec: MsrSpec) -> dict[int, str]:
    """
    Return the names by which *spec*, which is valid, selects MSRs that have others on other CPUs.

    An index may mean different MSRs on different CPUs. A name selects its index on all of them.
    """
    items = [spec] if isinstance(spec, str) else spec if isinstance(spec, Iterable) else ()
    found: dict[int, str] = {}
    for item in items:
        text = item.strip() if isinstance(item, str) else ""
        if _GLOB.fullmatch(text):
            meant = catalog().match(text)
        else:
            meant = [catalog().lookup(text)] if _NAME.fullmatch(text) else []
        for msr in meant:
            if len(catalog().meanings(msr.index)) > 1:
                found.setdefault(msr.index, msr.name)
    return found


def _one(item: object) -> list[tuple[int, int]]:
    if isinstance(item, tuple) and len(item) == 2 and all(type(end) is int for end in item):
        return [_checked(item[0], item[1], shown(item))]
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise PolicyError(f"{shown(item)} is not an MSR: write a number, a range or a name")
    if isinstance(item, int):
        return [_checked(item, item, shown(item))]
    text = item.strip()
    match = _RANGE.fullmatch(text)
    if match:
        first, last = (int(number, 0) for number in (match[1], match[2] or match[1]))
        return [_checked(first, last, text)]
    if _GLOB.fullmatch(text):
        return _glob(text)
    if not _NAME.fullmatch(text):
        raise PolicyError(
            f"{shown(item)} is not an MSR: write a number (0x35), a range (0x600-0x63f), a name or"
            " a name pattern (IA32_MC*_STATUS)"
        )
    try:
        index = catalog().lookup(text).index
    except UnknownMsrError as error:
        raise PolicyError(str(error)) from None
    return [(index, index)]


def _glob(pattern: str) -> list[tuple[int, int]]:
    """Return the MSRs whose names match *pattern*."""
    found = [(msr.index, msr.index) for msr in catalog().match(pattern)]
    if not found:
        plain = re.sub(r"\[.*?\]|[*?]", "", pattern)
        names = {name.lower(): name for msr in catalog() for name in (msr.name, *msr.aliases)}
        near = difflib.get_close_matches(plain.lower(), names, n=1, cutoff=0.3)
        hint = f"; the closest name is {names[near[0]]}" if near else ""
        raise PolicyError(f"no MSR's name matches {shown(pattern)}{hint}")
    return found


def _checked(first: int, last: int, text: str) -> tuple[int, int]:
    if first < 0 or last > MAX_INDEX:
        raise PolicyError(f"{text} is out of range: MSRs go from 0 to {MAX_INDEX:#x}")
    if first > last:
        raise PolicyError(f"{text} ends before it begins")
    return first, last


def merge(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return *ranges* in ascending order, with adjacent and overlapping ones merged."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
