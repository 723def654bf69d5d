# SPDX-License-Identifier: Apache-2.0
"""
Text for messages
-----------------

What others wrote (policies, handlers, file names) goes into messages, logs and tables. There it
must stay what it is, text in its place: it must not move a terminal's cursor, turn the direction of
writing, or begin a line that kvmsr never wrote.
"""

import difflib
from collections.abc import Iterable
from typing import Final

__all__ = ("counted", "error_text", "nearest", "one_line", "shown")

_SHOWN: Final = 100  # characters
_ERROR: Final = 200
_MAX_DECIMAL: Final = 1 << 64


def one_line(text: str) -> str:
    r"""
    Return *text* with everything that does not print escaped, as ``\x1b``, ``\u202e`` or ``\n``.

    That is: control characters, line and paragraph separators, format characters such as those
    that turn the direction of writing, spaces other than the ordinary one, unassigned characters,
    and bytes of file names that are not text.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shown(value: object) -> str:
    """Return *value* as messages show it: one line of at most 100 characters; integers as 0x35."""
    try:
        # Python refuses to write the longest integers in decimal.
        in_hex = type(value) is int and not -_MAX_DECIMAL < value < 0
        text = f"{value:#x}" if in_hex else repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever somebody's __repr__ does
        text = f"a {type(value).__name__}"
    return _short(text, _SHOWN)


def error_text(error: BaseException) -> str:
    """Return type and message of *error* in one line of at most some 200 characters."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever somebody's __str__ does
        text = ""
    name = one_line(type(error).__name__)
    return f"{name}: {_short(text, _ERROR)}" if text else name


def nearest(word: object, known: Iterable[str]) -> str:
    """Return a hint for a *word* that is not *known*: what looks like it, or all that there is."""
    words = [str(one) for one in known]
    near = difflib.get_close_matches(str(word), words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(words)}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return *count* with *noun* in the singular or plural: "1 read", "1,234 reads"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def _short(text: str, limit: int) -> str:
    # Bounded before it is escaped, too: somebody's __repr__ may return gigabytes.
    text = one_line(" ".join(text[: limit * 4].split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
