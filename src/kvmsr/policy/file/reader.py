# SPDX-License-Identifier: Apache-2.0
"""
Interpreting policy files
-------------------------

Turns documents into rules and defaults, along with the documents that they extend. Errors are added
to the document, and reading goes on.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Final

import msgspec

from kvmsr.errors import PolicyError, SymbolError
from kvmsr.files import read_regular
from kvmsr.policy.access import Op
from kvmsr.policy.actions import Action, Counter, Host, Model, Python, Value, plain, to_action
from kvmsr.policy.bits import Bits
from kvmsr.policy.file.document import Document, RuleKeys
from kvmsr.policy.file.finder import Finder
from kvmsr.policy.file.lines import show
from kvmsr.policy.file.presets import preset_names, preset_text
from kvmsr.policy.file.schema import ActionTable, ModelTable
from kvmsr.policy.form import FormError, Path, convert
from kvmsr.policy.policy import Defaults, parse_observe
from kvmsr.policy.register_models import find_model
from kvmsr.policy.rule import Place, Rule, to_log, to_scope
from kvmsr.policy.selector import Ranges, merge, parse_msrs
from kvmsr.policy.topology import Topology
from kvmsr.policy.when import Lookup, When
from kvmsr.symbols import Symbols
from kvmsr.text import nearest, one_line, shown

__all__ = ("PRESET", "Reader", "Shelf")

PRESET: Final = "preset:"
"""The prefix of the names of policies that come with kvmsr."""

_MAX_SIZE: Final = 4 << 20  # bytes: some 40,000 rules
_MAX_DEPTH: Final = 64

_ONE_OF: Final = " and ".join(
    (", ".join(ActionTable.__struct_fields__[:-1]), ActionTable.__struct_fields__[-1])
)

# Checked key by key before the rule is constructed, so that errors name the key.
_CHECKS: Final[dict[str, Callable[[Any], object]]] = {
    "msr": parse_msrs,
    "reset": Value,
    "bits": Bits.parse,
    "scope": to_scope,
    "log": to_log,
}


class Shelf:
    """
    The files of one reading; each is read once.

    :param finder: resolves names in Python modules.
    :ivar readers: the files, in the order in which reading them began.
    :ivar files: the paths of those that are not presets, in the same order.
    """

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.readers: list[Reader] = []
        self.files: list[FilePath] = []
        self._by_name: dict[str, Reader] = {}

    def read(self, name: str, folder: FilePath, above: tuple[str, ...] = ()) -> "Reader":
        """
        Read the file or preset *name*.

        :param folder: the folder that the name is relative to.
        :param above: the files that extend it, outermost first.
        :raises PolicyError: if it cannot be read. Errors in the file are added to its document.
        """
        is_preset = name.startswith(PRESET)
        file = FilePath() if is_preset else folder / name
        key = name if is_preset else _resolved(file)
        if key in above:
            chain = " → ".join(FilePath(one).name for one in (*above, key))
            raise PolicyError(f"extends itself: {chain}")
        if len(above) > _MAX_DEPTH:
            raise PolicyError(f"extends more than {_MAX_DEPTH} levels deep")
        if key not in self._by_name:
            text = _preset(name) if is_preset else _text(file)
            if not is_preset:
                self.files.append(file.absolute())
            source = name if is_preset else str(file)
            self._by_name[key] = Reader(text, source, file.parent, self, (*above, key))
        return self._by_name[key]

    @property
    def sound(self) -> bool:
        """Whether there are no errors so far."""
        return not any(reader.document.errors for reader in self.readers)


class Reader:
    """
    One file, interpreted.

    :ivar document: the file.
    :ivar defaults: its defaults; those that it does not set are from the last base that does.
    :ivar topology: its topology, in the same way.
    :ivar observe: the MSRs that it or one of its bases observes.
    """

    def __init__(
        self, text: str, source: str, folder: FilePath, shelf: Shelf, above: tuple[str, ...] = ()
    ) -> None:
        self.document = Document(text, source)
        self.defaults: dict[str, str] = {}
        self.topology: dict[str, int] = {}
        self.observe: Ranges = ()
        self._folder = folder
        self._shelf = shelf
        self._name = FilePath(source).name
        self._bases: list[Reader] = []
        document = self.document
        shelf.readers.append(self)
        self._symbols = self._read_symbols()
        self._own: list[Rule | None] = []
        self._pending: dict[int, Callable[[], Rule | None]] = {}
        for number, keys in enumerate(document.rules):
            sound = self._check(keys, number)
            if _names_code(keys.given):
                self._own.append(None)
                self._pending[number] = partial(self._rule, keys, number, sound=sound)
            else:
                self._own.append(self._rule(keys, number, sound=sound))
        for number, name in enumerate(document.header.extends):
            with document.at(("policy", "extends", number)):
                self._bases.append(shelf.read(name, folder, above))
        with document.at(("policy", "observe")):
            self.observe = parse_observe(document.header.observe)
        for base in self._bases:
            self.defaults.update(base.defaults)
            self.topology.update(base.topology)
            self.observe = merge([*self.observe, *base.observe])
        self.defaults.update(self._checked("defaults", document.defaults, Defaults))
        self.topology.update(self._checked("topology", document.topology, Topology))

    def rules(self) -> list[Rule]:
        """Return its rules, followed by those of its bases from last to first, each file once."""
        return [rule for reader in self._readers(set()) for rule in reader._own if rule]

    def look_up(self) -> None:
        """Construct the rules that refer to Python modules; run none if there are errors."""
        for number, rule in self._pending.items():
            if self._shelf.sound or not self._shelf.finder.runs_code:
                self._own[number] = rule()

    def _readers(self, seen: set[int]) -> Iterator["Reader"]:
        if id(self) not in seen:
            seen.add(id(self))
            yield self
            for base in reversed(self._bases):
                yield from base._readers(seen)

    # Parts

    def _checked(
        self, table: str, own: msgspec.Struct, check: Callable[..., object]
    ) -> dict[str, Any]:
        """Return the keys of a table of the file that *check* accepts."""
        accepted = {}
        for key in own.__struct_fields__:
            given = getattr(own, key)
            if given is not None:
                with self.document.at((table, key)):
                    check(**{key: given})
                    accepted[key] = given
        return accepted

    def _read_symbols(self) -> Lookup | None:
        """Return what looks up the names of functions, if the file names symbols."""
        name = self.document.header.symbols
        if not name:
            return None
        with self.document.at(("policy", "symbols")):
            file = self._folder / name
            try:
                found = Symbols.read(file)
            except SymbolError as error:
                raise PolicyError(str(error)) from None
            return found.range
        return lambda function: (0, 0)  # that they are missing has been said

    def _check(self, keys: RuleKeys, number: int) -> bool:
        """Check the keys except for the actions; return whether they are all right."""
        before = len(self.document.errors)
        for key, check in {**_CHECKS, "when": self._when}.items():
            if keys.given.get(key) is not None:
                with self.document.at(("rule", number, key)):
                    check(keys.given[key])
        return keys.whole and len(self.document.errors) == before

    def _rule(self, keys: RuleKeys, number: int, *, sound: bool) -> Rule | None:
        path: Path = ("rule", number)
        document, given = self.document, keys.given
        before = len(document.errors)
        read = self._action(given.get("read"), (*path, "read"))
        write = self._action(given.get("write"), (*path, "write"))
        model = self._both(given.get("model"), (*path, "model"))
        if not sound or len(document.errors) > before:
            return None
        line = document.line(path)
        with document.at(path):
            return Rule(
                given["msr"],
                read,
                write,
                model=model,
                reset=given.get("reset"),
                bits=given.get("bits"),
                scope=given.get("scope"),
                keep=given.get("keep", False),
                when=None if given.get("when") is None else self._when(given["when"]),
                log=given.get("log"),
                where=one_line(f"{self._name}:{line}"),
                place=Place(document.source, line, show(path), document.inside(path)),
            )
        return None

    def _when(self, spec: Mapping[str, Any]) -> When:
        return When.parse(spec, self._symbols)

    def _action(self, spec: str | dict[str, Any] | None, path: Path) -> Action | None:
        """Return the action for *spec* at *path*."""
        if spec is None:
            return None
        with self.document.at(path):
            if isinstance(spec, str):
                return plain(spec)
            named = [key for key in ActionTable.__struct_fields__ if key in spec]
            if "model" in named:
                return self._model(spec)
            table = convert(spec, ActionTable)
            if len(named) != 1:
                raise PolicyError(f"a table needs exactly one of {_ONE_OF}")
            if table.python is not None:
                return Python(self._shelf.finder.function(table.python, self._folder), table.python)
            if table.host is not None:
                return Host.parse(table.host)
            if table.counter is not None:
                return Counter(table.counter)
            assert table.value is not None
            return to_action(Value(table.value), Op(str(path[-1])))
        return None

    def _model(self, spec: Mapping[str, Any]) -> Model:
        parameters = dict(spec)
        name = convert({"model": parameters.pop("model")}, ActionTable).model
        assert name is not None
        return self._find_model(name, parameters)

    def _both(self, spec: str | dict[str, Any] | None, path: Path) -> Model | None:
        """Return the model for reads and writes: its name, or a table with the name."""
        if spec is None:
            return None
        with self.document.at(path):
            given = {"name": spec} if isinstance(spec, str) else spec
            name = convert(given, ModelTable).name
            found = self._find_model(name, {k: v for k, v in given.items() if k != "name"})
            if "name" in found.parameters.__struct_fields__:
                message = f"{found} has a parameter with this name: write read and write instead"
                raise FormError(message, ("name",))
            return found
        return None

    def _find_model(self, name: str, parameters: Mapping[str, Any]) -> Model:
        finder = self._shelf.finder
        found = find_model(name, lambda place: finder.model(place, self._folder, parameters))
        return Model.of(found, name, parameters)


def _names_code(given: Mapping[str, Any]) -> bool:
    """Return whether a rule refers to a Python module."""
    tables = [spec for op in ("read", "write") if isinstance(spec := given.get(op), dict)]
    both = given.get("model")
    name = both.get("name") if isinstance(both, dict) else both
    names = [name, *(spec.get("model") for spec in tables)]
    return any("python" in spec for spec in tables) or any(":" in str(name) for name in names)


def _resolved(file: FilePath) -> str:
    try:
        return str(file.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # the last: a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise PolicyError(f"not the name of a file: {reason}", file=shown(str(file))) from None


def _text(file: FilePath) -> str:
    try:
        return read_regular(file, _MAX_SIZE).decode()
    except OSError as error:
        raise PolicyError(f"cannot read the policy: {error.strerror}", file=str(file)) from None
    except UnicodeDecodeError as error:
        message = f"not a text file: byte {error.start} is not UTF-8"
        raise PolicyError(message, file=str(file)) from None


def _preset(name: str) -> str:
    short = name.removeprefix(PRESET)
    text = preset_text(short)
    if text is None:
        hint = nearest(short, preset_names())
        raise PolicyError(f"there is no preset {shown(short)}; {hint}")
    return text
