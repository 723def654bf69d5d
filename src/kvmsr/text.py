# SPDX-License-Identifier: Apache-2.0
"""
Text for messages
-----------------

Text from outside (policies, handlers, file names) appears in messages, logs and tables. It must not
be able to move the terminal's cursor, change the writing direction, or forge lines of its own.
"""

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

__all__ = ("counted", "duration", "error_text", "nearest", "one_line", "shown")

_SHOWN: Final = 100  # characters
_ERROR: Final = 200
_UNITS: Final = {"s": 1e9, "ms": 1e6, "µs": 1e3}
_MAX_DECIMAL: Final = 1 << 64


def one_line(text: str) -> str:
    r"""
    Return *text* with everything that does not print escaped, as ``\x1b``, ``\u202e`` or ``\n``.

    This covers control characters, line and paragraph separators, format characters such as those
    that change the writing direction, all spaces but the ordinary one, unassigned characters, and
    undecodable bytes of file names.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shown(value: object) -> str:
    """Return *value* for a message: one line of at most 100 characters, with integers as 0x35."""
    try:
        # Python refuses to convert very long integers to decimal.
        in_hex = type(value) is int and not -_MAX_DECIMAL < value < 0
        text = f"{value:#x}" if in_hex else repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # __repr__ can be anybody's code
        text = f"a {type(value).__name__}"
    return _short(text, _SHOWN)


def error_text(error: BaseException) -> str:
    """Return the type and the message of *error* in one line of about 200 characters at most."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # __str__ can be anybody's code
        text = ""
    name = one_line(type(error).__name__)
    return f"{name}: {_short(text, _ERROR)}" if text else name


def nearest(word: object, known: Iterable[str]) -> str:
    """Return a hint for a *word* that is not *known*: the closest one, or a list of all."""
    return _nearest(str(word), tuple(map(str, known)))


@lru_cache(maxsize=256)  # files have the same mistake again and again, and difflib is slow
def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return *count* with *noun* in the singular or plural: "1 read", "1,234 reads"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def duration(ns: float) -> str:
    """Return a time in the unit that suits it, to three digits: "1.23 µs"."""
    for unit, size in _UNITS.items():
        if ns >= size:
            number = ns / size
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{ns:.3g} ns"


def _short(text: str, limit: int) -> str:
    # Cut before escaping, too: the text may be gigabytes long.
    text = one_line(" ".join(text[: limit * 4].split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
