# SPDX-License-Identifier: Apache-2.0
"""
Quantities
----------

Numbers with units, as text and from text: ``15 W``, ``3.2 GHz``, ``61 µJ``, ``2 GiB``.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ("Quantity", "in_unit", "sized", "to_text")

_DECIMAL: Final = {
    "n": 1e-9,
    "µ": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
}
_SMALL: Final = ("", "m", "µ", "n")
_LARGE: Final = ("T", "G", "M", "k", "")
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_SCALED: Final = ("Hz", "J", "s")
"""Units that are shown with the prefix that suits the number; the others stay as they are."""
_BASES: Final = ("Hz", "W", "J", "s", "V", "A", "B")
_WORDS: Final = {
    "c": "°C", "degc": "°C", "celsius": "°C", "degrees celsius": "°C", "percent": "%",
    "sec": "s", "second": "s", "seconds": "s", "watt": "W", "watts": "W", "joule": "J",
    "joules": "J", "volt": "V", "volts": "V", "byte": "B", "bytes": "B",
}  # fmt: skip
_QUANTITY: Final = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D.*)"
"""A number and what follows it. (Few commands need it, so it is not compiled beforehand.)"""
_LEAST_DIGITS: Final = 4
_MOST_DIGITS: Final = 17


class Quantity(NamedTuple):
    """
    A number with a unit.

    :ivar value: the number.
    :ivar unit: ``W``, ``MHz``, ``°C`` and so on; any words for what has no unit of its own.
    """

    value: float
    unit: str


def _split(unit: str) -> tuple[float, str]:
    """Return the factor of a unit's prefix, and the unit without it."""
    unit = _WORDS.get(unit.lower(), unit)
    for base in _BASES:
        if unit.lower().endswith(base.lower()):
            prefix = unit[: -len(base)].replace("u", "µ").replace("μ", "µ")
            if base == "B":
                binary = [one.lower() for one in _BINARY]
                if prefix.lower() in binary:
                    return 1024.0 ** binary.index(prefix.lower()), base
            elif base == "Hz" and prefix.lower() in ("k", "m", "g", "t"):
                return _DECIMAL[prefix.lower() if prefix in "kK" else prefix.upper()], base
            elif prefix in _DECIMAL:
                return _DECIMAL[prefix], base
    return 1.0, unit


def in_unit(text: str, unit: str) -> float | None:
    """
    Return the number that *text*, such as ``3.2GHz``, is in *unit*, such as ``MHz``.

    None means that the text is not a number with that unit or one with another prefix.
    """
    found = re.fullmatch(_QUANTITY, text.strip())
    if found is None:
        return None
    number, given = float(found[1]), found[2].strip()
    if given.lower() == unit.lower() and given not in ("mW", "MW"):
        return number
    factor, base = _split(given)
    wanted, wanted_base = _split(unit)
    return number * (factor / wanted) if base.lower() == wanted_base.lower() else None


def to_text(value: float, unit: str, is_exact: Callable[[float], bool]) -> str:
    """
    Return a quantity as text, with a prefix that suits it and no more digits than it needs.

    :param is_exact: whether a number in *unit*, as a reader of the text gets it, stands for the
        same value.
    """
    factor, shown = 1.0, unit
    if unit in _SCALED and value:
        prefixes = _LARGE if unit == "Hz" else _SMALL
        factor, prefix = _prefix(abs(value), prefixes)
        shown = f"{prefix}{unit}"
    if factor == 1 and value == int(value):
        return f"{int(value)} {shown}"
    for digits in range(_LEAST_DIGITS, _MOST_DIGITS):
        number = float(f"{value / factor:.{digits}g}")
        if is_exact(number * factor):
            return f"{_plain(number)} {shown}"
    return f"{value / factor!r} {shown}"


def _prefix(value: float, prefixes: tuple[str, ...]) -> tuple[float, str]:
    """Return the largest of the prefixes that leaves a number of at least 1, and its factor."""
    best = next((one for one in prefixes if value >= _DECIMAL[one]), prefixes[-1])
    return _DECIMAL[best], best


def _plain(number: float) -> str:
    """Return a number without an exponent."""
    if number == int(number):
        return f"{int(number)}"
    text = repr(number)
    return f"{number:.20f}".rstrip("0") if "e" in text else text


def sized(size: int) -> str:
    """Return a size in bytes as text: ``2 GiB``, ``4 KiB``, ``100 B``; exact."""
    power = 0
    while size and size % 1024 == 0 and power + 1 < len(_BINARY):
        size, power = size // 1024, power + 1
    return f"{size} {_BINARY[power]}B"
