# SPDX-License-Identifier: Apache-2.0
"""
Policy files
------------

TOML text to :class:`~kvmsr.policy.Policy`. Strict: what is not understood is an error, and the
error names file, line and key.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, Final, NoReturn

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Op
from kvmsr.policy.actions import Action, Counter, Host, Model, Python, Value, plain, to_action
from kvmsr.policy.bits import Bits
from kvmsr.policy.file.handlers import HandlerFinder
from kvmsr.policy.file.lines import deepest_line, key_lines, show
from kvmsr.policy.file.presets import preset_names, preset_text
from kvmsr.policy.file.schema import (
    ActionTable,
    DefaultsTable,
    File,
    RuleTable,
    TopologyTable,
)
from kvmsr.policy.form import FormError, Path, convert
from kvmsr.policy.policy import Defaults, Policy
from kvmsr.policy.register_models import find_model
from kvmsr.policy.rule import Place, Rule, to_log, to_scope
from kvmsr.policy.selector import parse_msrs
from kvmsr.policy.topology import Topology
from kvmsr.policy.when import When
from kvmsr.text import nearest, one_line, shown

__all__ = ("PRESET", "load_policy", "parse_policy")


PRESET: Final = "preset:"
"""What the names of the policies that come with kvmsr begin with."""

_ONE_OF: Final = " and ".join(
    (", ".join(ActionTable.__struct_fields__[:-1]), ActionTable.__struct_fields__[-1])
)


# Done before the rule is made of all its keys, so that what is wrong is told with the key.
_CHECKS: Final[dict[str, Callable[[Any], object]]] = {
    "msr": parse_msrs,
    "reset": Value,
    "bits": Bits.parse,
    "scope": to_scope,
    "when": When.parse,
    "log": to_log,
}


def load_policy(file: str | FilePath) -> Policy:
    """
    Read the policy in *file*; ``preset:quiet`` and the like are those that come with kvmsr.

    :raises PolicyError: with file, line and key, for the first thing that is wrong in it or in a
        policy that it extends.
    """
    if str(file).startswith(PRESET):
        try:
            return _preset(str(file), (), HandlerFinder()).policy()
        except _NoPresetError as error:
            raise PolicyError(str(error), file=str(file)) from None
    return _load(FilePath(file), (), HandlerFinder()).policy()


def parse_policy(text: str, *, source: str = "policy") -> Policy:
    """
    Read a policy from *text*; what it extends, and its modules, are found from the working folder.

    :param source: what messages call it.
    :raises PolicyError: as :func:`load_policy`.
    """
    return _Reader(text, source, FilePath(), (), HandlerFinder()).policy()


class _NoPresetError(PolicyError):
    """No preset has this name."""


def _preset(name: str, above: tuple[FilePath, ...], handlers: HandlerFinder) -> "_Reader":
    text = preset_text(name.removeprefix(PRESET))
    if text is None:
        hint = nearest(name.removeprefix(PRESET), preset_names())
        raise _NoPresetError(f"there is no preset called {shown(name[len(PRESET) :])}; {hint}")
    return _Reader(text, name, FilePath(), above, handlers)


def _load(file: FilePath, above: tuple[FilePath, ...], handlers: HandlerFinder) -> "_Reader":
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise PolicyError(f"cannot read the policy: {error.strerror}", file=str(file)) from None
    except UnicodeDecodeError as error:
        message = f"this is no text: byte {error.start} is not UTF-8"
        raise PolicyError(message, file=str(file)) from None
    except ValueError as error:
        raise PolicyError(f"this is no file's name: {error}", file=shown(str(file))) from None
    return _Reader(text, str(file), file.parent, (*above, file.resolve()), handlers)


class _Reader:
    """
    One file, read.

    :ivar rules: its rules and, behind them, those of its bases, from last to first.
    :ivar said: the defaults that it says or, where it does not, that its last base says.
    :ivar topology: the same of the topology.
    """

    def __init__(
        self,
        text: str,
        source: str,
        folder: FilePath,
        above: tuple[FilePath, ...],
        handlers: HandlerFinder,
    ) -> None:
        self.source = source
        self.folder = folder
        self.above = above
        self.handlers = handlers
        self.lines: dict[Path, int] = {}
        self.inside_of: dict[Path, list[Path]] = {}
        tree = self.tree(text)
        self.header = tree.policy
        self.rules = [self.rule(rule, number) for number, rule in enumerate(tree.rule)]
        self.said: dict[str, str] = {}
        self.topology: dict[str, int] = {}
        for number, name in enumerate(tree.policy.extends):
            base = self.base(name, number)
            self.said.update(base.said)
            self.topology.update(base.topology)
            # The next base comes before this one: insert behind the own rules.
            self.rules[len(tree.rule) : len(tree.rule)] = base.rules
        self.said.update(self.own_defaults(tree.defaults))
        self.topology.update(self.own_topology(tree.topology))

    def policy(self) -> Policy:
        """Return what was read, as a policy."""
        return Policy(
            self.rules,
            Defaults(**self.said),
            topology=Topology(**self.topology),
            allow_host_writes=self.header.allow_host_writes,
            name=self.header.name,
            description=self.header.description,
            source=self.source,
        )

    def tree(self, text: str) -> File:
        """Return the file's tables, or fail with what TOML or the schema objects to."""
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.fail_syntax(error, text)
        except RecursionError:
            message = "this is more than can be read: too many brackets in brackets"
            raise PolicyError(message, file=self.source, line=deepest_line(text)) from None
        except ValueError:  # Python's limit; the error tells no place
            digits = sys.get_int_max_str_digits()
            found = re.search(rf"(?<!\w)[0-9][0-9_]{{{digits},}}", text)
            raise PolicyError(
                f"this is more than can be read: a number of more than {digits} digits",
                file=self.source,
                line=text.count("\n", 0, found.start()) + 1 if found else 0,
            ) from None
        self.lines = key_lines(text)
        for key in self.lines:
            if len(key) > 2:  # what is in an element of [[rule]]
                self.inside_of.setdefault(key[:2], []).append(key)
        with self.at(()):
            return convert(raw, File)

    # Parts

    def base(self, name: str, number: int) -> "_Reader":
        """Return the policy that entry *number* of extends names."""
        path: Path = ("policy", "extends", number)
        if name.startswith(PRESET):
            with self.at(path):
                return _preset(name, self.above, self.handlers)
        file = self.folder / name
        try:
            is_file, resolved = file.is_file(), file.resolve()
        except (OSError, ValueError, RuntimeError) as error:  # the last: a loop of links
            reason = error.strerror if isinstance(error, OSError) else error
            self.fail(path, f"{shown(name)} is no file's name: {reason}")
        if resolved in self.above:
            chain = " → ".join(str(f.name) for f in (*self.above, file))
            self.fail(path, f"extends itself: {chain}")
        if not is_file:
            self.fail(path, f"there is no file {file}")
        return _load(file, self.above, self.handlers)

    def own_defaults(self, own: DefaultsTable) -> dict[str, str]:
        """Return the defaults that this file says itself."""
        said = {}
        for key in own.__struct_fields__:
            word = getattr(own, key)
            if word is not None:
                with self.at(("defaults", key)):
                    Defaults(**{key: word})
                said[key] = word
        return said

    def own_topology(self, own: TopologyTable) -> dict[str, int]:
        """Return what this file says itself of the topology."""
        said = {}
        for key in own.__struct_fields__:
            count = getattr(own, key)
            if count is not None:
                with self.at(("topology", key)):
                    Topology(**{key: count})
                said[key] = count
        return said

    def rule(self, rule: RuleTable, number: int) -> Rule:
        """Return rule *number*."""
        path: Path = ("rule", number)
        for key, check in _CHECKS.items():
            given = getattr(rule, key)
            if given is not None:
                with self.at((*path, key)):
                    check(given)
        line = self.line(path)
        with self.at(path):
            return Rule(
                rule.msr,
                self.action(rule.read, (*path, "read")),
                self.action(rule.write, (*path, "write")),
                reset=rule.reset,
                bits=rule.bits,
                scope=rule.scope,
                when=rule.when,
                log=rule.log,
                where=one_line(f"{FilePath(self.source).name}:{line}"),
                place=Place(self.source, line, show(path), self.inside(path)),
            )
        raise AssertionError  # for the type checker: at() swallows nothing

    def inside(self, path: Path) -> tuple[tuple[str, int], ...]:
        """Return the lines of the keys in the rule at *path*."""
        depth = len(path)
        return tuple((show(key[depth:]), self.lines[key]) for key in self.inside_of.get(path, ()))

    def action(self, spec: str | dict[str, Any] | None, path: Path) -> Action | None:
        """Return the action that *spec*, at *path*, stands for."""
        if spec is None:
            return None
        with self.at(path):
            if isinstance(spec, str):
                return plain(spec)
            named = [key for key in ActionTable.__struct_fields__ if key in spec]
            if "model" in named:
                return self.model(dict(spec))
            table = convert(spec, ActionTable)
            if len(named) != 1:
                raise PolicyError(f"a table needs exactly one of {_ONE_OF}")
            if table.python is not None:
                return Python(self.handlers.find(table.python, self.folder), table.python)
            if table.host is not None:
                return Host.parse(table.host)
            if table.counter is not None:
                return Counter(table.counter)
            assert table.value is not None
            return to_action(Value(table.value), Op(str(path[-1])))
        raise AssertionError  # for the type checker: at() swallows nothing

    def model(self, spec: dict[str, Any]) -> Model:
        """Return the action of a table that names a model."""
        name = convert({"model": spec.pop("model")}, ActionTable).model
        assert name is not None
        found = find_model(name, lambda place: self.handlers.find(place, self.folder, "Class"))
        return Model.of(found, name, spec)

    # Errors

    def line(self, path: Path) -> int:
        """Return the line of *path*, or of the nearest thing in it or around it that has one."""
        if path and path not in self.lines:  # [a.b] has a line, and a has none of its own
            inside = [line for key, line in self.lines.items() if key[: len(path)] == path]
            if inside:
                return min(inside)
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def fail(self, path: Path, message: str) -> NoReturn:
        """Fail at *path*."""
        raise PolicyError(message, file=self.source, line=self.line(path), key=show(path))

    @contextmanager
    def at(self, path: Path) -> Iterator[None]:
        """Add file, line and key to what goes wrong inside."""
        try:
            yield
        except PolicyError as error:
            if error.file:
                raise
            inside = error.path if isinstance(error, FormError) else ()
            self.fail((*path, *inside), str(error))

    def fail_syntax(self, error: tomllib.TOMLDecodeError, text: str) -> NoReturn:
        """Fail with what the TOML parser says."""
        match = re.fullmatch(r"(.*?) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        message, line = (match[1], match[2]) if match else (str(error), None)
        last = text.count("\n") + 1
        raise PolicyError(
            f"this is no TOML: {message}", file=self.source, line=int(line) if line else last
        ) from None
