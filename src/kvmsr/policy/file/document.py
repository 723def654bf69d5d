# SPDX-License-Identifier: Apache-2.0
"""
Documents
---------

The text of one policy file as typed tables, and its errors with file, line and key.
"""

import re
import sys
import tomllib
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from kvmsr.errors import PolicyError
from kvmsr.policy.file.lines import deepest_line, key_lines, show
from kvmsr.policy.file.schema import DefaultsTable, File, HeaderTable, RuleTable, TopologyTable
from kvmsr.policy.form import FormError, Path, convert, convert_keys
from kvmsr.text import nearest

__all__ = ("Document", "RuleKeys")

_DEEPEST: Final = 4  # rule, its number, when, value

_Table = TypeVar("_Table", bound=msgspec.Struct)


class RuleKeys(NamedTuple):
    """
    The keys of an element of ``[[rule]]``.

    :ivar given: the keys with values of the right type.
    :ivar whole: whether those are all of its keys.
    """

    given: dict[str, Any]
    whole: bool


class Document:
    """
    One policy file.

    :param source: what messages call it.
    :ivar errors: the errors found so far; whoever interprets the document adds to them.
    :ivar header: the table ``[policy]``; like the next two, without keys that are wrong.
    :ivar defaults: the table ``[defaults]``.
    :ivar topology: the table ``[topology]``.
    :ivar rules: the elements of ``[[rule]]``.
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.errors: list[PolicyError] = []
        self._lines: dict[Path, int] = {}
        self._inside: dict[Path, list[Path]] = {}
        self._first: dict[Path, int] = {}  # the first line of what is in a key
        raw: dict[str, Any] = {}
        try:
            raw = _parsed(text, source)
        except PolicyError as error:
            self.errors.append(error)
        else:
            self._lines = key_lines(text)
            for key, line in self._lines.items():
                if len(key) > 2:  # what is in an element of [[rule]]
                    self._inside.setdefault(key[:2], []).append(key)
                for depth in range(1, min(len(key), _DEEPEST)):
                    first = self._first.get(key[:depth], line)
                    self._first[key[:depth]] = min(first, line)
        known = File.__struct_fields__
        for name in raw:
            if name not in known:
                self.fail((name,), f"unknown key; {nearest(name, known)}")
        self.header = self._table(raw, "policy", HeaderTable)
        self.defaults = self._table(raw, "defaults", DefaultsTable)
        self.topology = self._table(raw, "topology", TopologyTable)
        self.rules = self._rules(raw.get("rule", []))

    def _table(self, raw: dict[str, Any], name: str, form: type[_Table]) -> _Table:
        if not isinstance(raw.get(name, {}), dict):
            with self.at((name,)):
                convert(raw[name], form)
            return form()
        given, errors = convert_keys(raw.get(name, {}), form)
        self._add((name,), errors)
        return form(**given)

    def _rules(self, raw: Any) -> list[RuleKeys]:
        if not isinstance(raw, list):
            with self.at(()):
                convert({"rule": raw}, File)
            return []
        rules = []
        for number, element in enumerate(raw):
            try:
                convert(element, RuleTable)
                rules.append(RuleKeys(element, whole=True))
            except FormError as error:
                given, errors = (
                    convert_keys(element, RuleTable) if isinstance(element, dict) else ({}, [error])
                )
                self._add(("rule", number), errors)
                rules.append(RuleKeys(given, whole=False))
        return rules

    # Places

    def line(self, path: Path) -> int:
        """Return the line of *path*, or else of the closest key inside or around it."""
        for depth in range(len(path), 0, -1):
            # The header [a.b] has a line, but a itself has none.
            line = self._lines.get(path[:depth]) or self._first.get(path[:depth])
            if line:
                return line
        return 0

    def inside(self, path: Path) -> tuple[tuple[str, int], ...]:
        """Return the lines of the keys in the rule at *path*."""
        depth = len(path)
        return tuple((show(key[depth:]), self._lines[key]) for key in self._inside.get(path, ()))

    # Errors

    def at(self, path: Path) -> "_At":
        """Return a context that catches a PolicyError, and adds it to the errors with *path*."""
        return _At(self, path)

    def fail(self, path: Path, message: str) -> None:
        """Add an error at *path*."""
        line, key = self.line(path), show(path)
        self.errors.append(PolicyError(message, file=self.source, line=line, key=key))

    def _add(self, path: Path, errors: list[FormError]) -> None:
        for error in errors:
            self.fail((*path, *error.path), str(error))


class _At:
    def __init__(self, document: Document, path: Path) -> None:
        self._document = document
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, PolicyError):
            return False
        inside = error.path if isinstance(error, FormError) else ()
        self._document.fail((*self._path, *inside), str(error))
        return True


def _parsed(text: str, source: str) -> dict[str, Any]:
    """Parse *text* as TOML, or raise PolicyError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(r"(.*?) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        message, line = (match[1], match[2]) if match else (str(error), None)
        last = text.count("\n") + 1
        raise PolicyError(
            f"invalid TOML: {message}", file=source, line=int(line) if line else last
        ) from None
    except RecursionError:
        message = "too deeply nested"
        raise PolicyError(message, file=source, line=deepest_line(text)) from None
    except ValueError:  # Python's limit for integers; the error does not say where
        digits: Final = sys.get_int_max_str_digits()
        found = re.search(rf"(?<!\w)[0-9][0-9_]{{{digits},}}", text)
        raise PolicyError(
            f"a number of more than {digits} digits",
            file=source,
            line=text.count("\n", 0, found.start()) + 1 if found else 0,
        ) from None
