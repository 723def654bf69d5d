# SPDX-License-Identifier: Apache-2.0
"""
Lines of a TOML file
--------------------

Finds the line of each key of a TOML document. The standard library's parser does not report lines.
This module goes over the same text and only keeps count, so it relies on the text being valid TOML.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from kvmsr.policy.form import Path

__all__ = ("deepest_line", "key_lines", "show")

_TOKEN: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}'''  # strings of several lines
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*\'"""  # strings of one
    r"|\#[^\n]*|[\[\]{}\n]|[^\[\]{}\n\"'#]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each table and key outside inline tables and arrays."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    for line, statement in _statements(text):
        if statement.startswith("[["):
            path = _resolve(_keys(statement[2 : statement.index("]]")]), counts)
            number = counts[path] = counts.get(path, -1) + 1
            table = (*path, number)
            lines.setdefault(path, line)
        elif statement.startswith("["):
            table = _resolve(_keys(statement[1 : statement.rindex("]")]), counts)
        else:
            key = statement[: _equals(statement)]
            lines[(*table, *_keys(key))] = line
            continue
        lines.setdefault(table, line)
    return lines


def deepest_line(text: str) -> int:
    """Return the line on which the most brackets are open; the first of several."""
    line, depth, deepest, where = 1, 0, 0, 1
    for match in _TOKEN.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > deepest:
            deepest, where = depth, line
        line += match[0].count("\n")
    return where


def show(path: Path) -> str:
    """Return *path* as text, ``rule[2].read``; what does not print in keys is escaped."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isprintable() else repr(part)
            text += f".{name}" if text else name
    return text


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each table header, and each key with its value, with the line that it starts on."""
    line, depth, begun = 1, 0, 1
    parts: list[str] = []
    blank = True
    for match in _TOKEN.finditer(text.replace("\r\n", "\n") + "\n"):
        token = match[0]
        if token == "\n" and depth == 0:
            if not blank:
                yield begun, "".join(parts).strip()
            parts, blank = [], True
        elif not token.startswith("#"):
            if blank:
                begun = line
            parts.append(token)
            blank = blank and not token.strip()
            depth += (token in "[{") - (token in "]}")
        line += token.count("\n")


def _equals(statement: str) -> int:
    """Return the position of the = after the key."""
    for match in _TOKEN.finditer(statement):
        if match[0][0] not in "\"'" and "=" in match[0]:
            return match.start() + match[0].index("=")
    return len(statement)


def _keys(dotted: str) -> Path:
    """Split a dotted key, by way of the standard library's parser."""
    value: Any = tomllib.loads(f"{dotted.strip()} = 0")
    path: list[str | int] = []
    while isinstance(value, dict):
        ((key, value),) = value.items()
        path.append(key)
    return tuple(path)


def _resolve(path: Path, counts: dict[Path, int]) -> Path:
    """Insert the number of the current element after each part that is an array of tables."""
    resolved: Path = ()
    for part in path[:-1]:
        resolved = (*resolved, part)
        if resolved in counts:
            resolved = (*resolved, counts[resolved])
    return (*resolved, path[-1])
