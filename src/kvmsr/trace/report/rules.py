# SPDX-License-Identifier: Apache-2.0
"""
Rules in a report
-----------------

The text of a policy, with the number of accesses that each of its rules decided.

The text comes from a trace, which may be anybody's. It is only parsed: no file that it names is
read, and no module that it names is imported.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from kvmsr.policy.file.document import Document
from kvmsr.policy.file.presets import preset_text
from kvmsr.text import one_line
from kvmsr.trace.file import Head

__all__ = ("Listing", "RuleCount", "TextLine", "listing")

_PRESET: Final = "preset:"
_MAX_TEXT: Final = 1 << 18
_MAX_LINES: Final = 1500
_MAX_WIDTH: Final = 160
_MAX_FILES: Final = 16
_DEFAULTS: Final = ("unknown", "invalid", "on_error")


@dataclass(frozen=True, slots=True)
class RuleCount:
    """
    What a rule decided.

    :ivar name: the rule's name, as in the trace.
    :ivar counts: the number of accesses, trace by trace.
    """

    name: str
    counts: tuple[int, ...]

    @property
    def fired(self) -> bool:
        """Return whether the rule decided any access."""
        return any(self.counts)


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of a policy: its number, its text, and the rule that begins there, if any."""

    number: int
    text: str
    rule: RuleCount | None


@dataclass(frozen=True, slots=True)
class Listing:
    """
    A policy, rule by rule.

    :ivar files: the lines of each file.
    :ivar others: the rules that are not in these files.
    :ivar left_out: what is not shown, in words; "" if everything is.
    """

    files: dict[str, list[TextLine]]
    others: list[RuleCount]
    left_out: str

    @property
    def rules(self) -> list[RuleCount]:
        """Return the rules that are in the files."""
        return [line.rule for lines in self.files.values() for line in lines if line.rule]

    @property
    def never(self) -> list[RuleCount]:
        """Return those that decided no access."""
        return [rule for rule in self.rules if not rule.fired]


def listing(heads: Iterable[Head], fired: list[Mapping[str, int]]) -> Listing:
    """
    Return the policies of some traces, rule by rule.

    :param fired: for each trace, the number of accesses that each rule decided.
    """
    names = list(dict.fromkeys(name for counts in fired for name in counts))
    files: dict[str, list[TextLine]] = {}
    left_out, lines_left, seen = "", _MAX_LINES, set[str]()
    for file, text in _texts(heads):
        if len(files) >= _MAX_FILES or len(text) > _MAX_TEXT:
            left_out = "The policy is too long to be shown in full."
            continue
        starts = _starts(Document(text, file), file, names)
        rules = {
            line: RuleCount(name, tuple(counts.get(name, 0) for counts in fired))
            for line, name in starts.items()
        }
        seen |= set(starts.values())
        lines = text.splitlines()
        if len(lines) > lines_left:
            left_out = f"Only the first {_MAX_LINES:,} lines of the policy are shown."
        files[file] = [
            TextLine(number, _clean(line), rules.get(number))
            for number, line in enumerate(lines[:lines_left], 1)
        ]
        lines_left -= len(files[file])
    others = [
        RuleCount(name, tuple(counts.get(name, 0) for counts in fired))
        for name in names
        if name not in seen
    ]
    return Listing({name: lines for name, lines in files.items() if lines}, others, left_out)


def _texts(heads: Iterable[Head]) -> Iterator[tuple[str, str]]:
    """Yield the policy files of traces, with their names, and the presets that they extend."""
    waiting: list[tuple[str, str]] = []
    for head in heads:
        if head.policy.startswith(_PRESET):
            waiting.append((head.policy, ""))
        waiting += [item for item in head.policy_text.items() if not item[0].endswith(".py")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, text = waiting.pop(0)
        if name.startswith(_PRESET):
            text = preset_text(name.removeprefix(_PRESET)) or ""
        if not text or (name, text) in seen:
            continue
        seen.add((name, text))
        yield name, text
        if len(text) <= _MAX_TEXT:
            bases = Document(text, name).header.extends
            waiting += [(base, "") for base in bases if base.startswith(_PRESET)]


def _starts(document: Document, file: str, names: list[str]) -> dict[int, str]:
    """Return the name of the rule, or the default, that begins in each line."""
    base = file if file.startswith(_PRESET) else PurePath(file).name
    starts = {}
    for number in range(len(document.rules)):
        line = document.line(("rule", number))
        if line:
            starts[line] = one_line(f"{base}:{line}")
    for key in _DEFAULTS:
        if getattr(document.defaults, key) is not None and f"defaults.{key}" in names:
            starts[document.line(("defaults", key))] = f"defaults.{key}"
    return starts


def _clean(line: str) -> str:
    line = one_line(re.sub("\t", "    ", line))
    return line if len(line) <= _MAX_WIDTH else f"{line[: _MAX_WIDTH - 1]}…"
