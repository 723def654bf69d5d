# SPDX-License-Identifier: Apache-2.0
"""
Looking up names without running modules
----------------------------------------

Running a policy requires importing its modules, which runs them. Merely looking at a policy must
not: the file may come from anywhere. So modules are located by the import system's finders, whose
code is part of this interpreter anyway, and submodules without importing their packages. The source
is then parsed. A name exists if something at the top level of the module binds it. What cannot be
known in this way is accepted, and noted.
"""

import ast
import importlib.util
import symtable
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

import msgspec

from kvmsr.errors import BrokenInvariantError, PolicyError
from kvmsr.files import read_regular
from kvmsr.policy.access import Access, Handler
from kvmsr.policy.file.finder import split_name
from kvmsr.policy.registers import ModelClass, Register
from kvmsr.policy.topology import Scope
from kvmsr.text import error_text, shown

__all__ = ("Found", "NameLookup")

_MAX_SOURCE: Final = 16 << 20  # bytes
_BIND_ANYTHING: Final = {"exec", "globals", "locals", "setattr", "vars"}


@dataclass(frozen=True, slots=True)
class Found:
    """
    The result of looking up a name.

    :ivar name: the name, ``module:function`` or ``module:Class``.
    :ivar where: the module's file, or "".
    :ivar unsure: why it is not known whether the module has the name, or "".
    :ivar is_model: whether the policy uses it as a register model.
    """

    name: str
    where: str
    unsure: str
    is_model: bool

    def __str__(self) -> str:
        place = f" in {self.where}" if self.where else ""
        text = f"{self.name}{place} was looked up, not run"
        if self.unsure:
            text += f"; whether it exists was not checked, as {self.unsure}"
        if self.is_model:
            text += "; the model's registers and parameters were not checked"
        return text


class NameLookup:
    """
    Looks up names in modules without running any of them.

    :ivar found: the results, by name.
    """

    runs_code = False

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}

    @property
    def files(self) -> list[Path]:
        """Return the files of the modules that have been found so far."""
        return [Path(one.where) for one in self.found.values() if one.where]

    def function(self, name: str, folder: Path) -> Handler:
        """Return a stand-in for the function *name*; calling it is an error."""
        self._find(name, folder, "function")
        return _StandIn(name)

    def model(self, name: str, folder: Path, parameters: Mapping[str, Any]) -> ModelClass:
        """Return a stand-in for the register model *name*, with every MSR and any parameter."""
        self._find(name, folder, "Class")
        return _stand_in_model(name, parameters)

    def _find(self, name: str, folder: Path, what: str) -> None:
        if name in self.found:
            return
        module, attribute = split_name(name, what)
        where, source, unsure = _module(module, folder)
        if source is not None:
            there, unsure = _binds(source, where, attribute)
            if not there and not unsure:
                raise PolicyError(
                    f"module {shown(module)} has no {what} {shown(attribute)}: nothing in {where}"
                    " defines it"
                )
        self.found[name] = Found(name, where, unsure, what == "Class")


# Finding the source


def _module(name: str, folder: Path) -> tuple[str, str | None, str]:
    """
    Return the file of a module, its source, and why there is no source.

    The order is that of :class:`~kvmsr.policy.file.importer.Importer`: next to the policy first.
    """
    first, *rest = name.split(".")
    package = folder / first / "__init__.py"
    if package.is_file():
        if not rest:
            return _read(package)
        spec = _spec_inside(first, rest, [str(package.parent)])
    else:
        file = (folder / first).joinpath(*rest).with_suffix(".py")
        if file.is_file():
            return _read(file)
        spec = getattr(sys.modules.get(name), "__spec__", None) or _spec(first, None)
        if spec is not None and rest and spec.name == first:
            if spec.submodule_search_locations is None:
                return "", None, f"{first} is not a package, but may create submodules"
            spec = _spec_inside(first, rest, spec.submodule_search_locations)
    if spec is None:
        raise PolicyError(
            f"there is no module {shown(name)}, neither in {folder.resolve()} nor on Python's path"
        )
    if spec.origin is not None and spec.origin.endswith(".py") and spec.has_location:
        return _read(Path(spec.origin))
    kind = spec.origin if spec.origin in ("built-in", "frozen") else "available without source only"
    return spec.origin if spec.has_location and spec.origin else "", None, f"the module is {kind}"


def _spec_inside(name: str, rest: list[str], path: Any) -> ModuleSpec | None:
    """Return the spec of a submodule, without importing the packages around it."""
    spec = None
    for part in rest:
        if path is None:  # not a package
            return None
        name = f"{name}.{part}"
        spec = _spec(name, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _spec(name: str, path: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        try:
            spec: ModuleSpec | None = None if find_spec is None else find_spec(name, path)
        except Exception:  # a broken finder is not the policy's fault
            continue
        if spec is not None:
            return spec
    return None


def _read(file: Path) -> tuple[str, str | None, str]:
    try:
        return str(file), importlib.util.decode_source(read_regular(file, _MAX_SOURCE)), ""
    except OSError as error:
        raise PolicyError(f"cannot read the module {file}: {error.strerror}") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot parse the module {file}: {error_text(error)}") from None


# Parsing the source


def _binds(source: str, file: str, name: str) -> tuple[bool, str]:
    """Return whether the top level of *source* binds *name*, and if not, why it still might."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, file)
            table = symtable.symtable(source, file, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PolicyError(f"cannot parse the module {file}: {error_text(error)}") from None
    if name in table.get_identifiers():
        symbol = table.lookup(name)
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
            return True, ""
    return False, next(_ways_to_bind(tree, name), "")


def _ways_to_bind(tree: ast.Module, name: str) -> Iterator[str]:
    """Yield reasons why the module may have the name, although no statement binds it."""
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        yield "the module has a __getattr__"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield f"the module imports * from {node.module or '.'}"
        if isinstance(node, ast.Global) and name in node.names:
            yield "a function of the module declares it global"
        if isinstance(node, ast.Name) and node.id in _BIND_ANYTHING:
            yield f"the module calls {node.id}()"


# Stand-ins


@dataclass(frozen=True, slots=True)
class _StandIn:
    """Stands in for a function that was not imported."""

    name: str

    def __call__(self, access: Access) -> int | None:
        raise BrokenInvariantError(f"{self.name} was looked up but not imported: it cannot answer")


class _AnyRegister(Mapping[int, Register]):
    """The registers of a model that was not imported: it may have any."""

    def __contains__(self, index: object) -> bool:
        return True

    def __getitem__(self, index: int) -> Register:
        raise KeyError(index)

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _stand_in_model(name: str, parameters: Mapping[str, Any]) -> ModelClass:
    for key in parameters:
        if not key.isidentifier():
            raise PolicyError(f"{shown(key)} is not the name of a parameter")
    form = msgspec.defstruct("Parameters", [(key, Any) for key in parameters], frozen=True)
    members = {"registers": _AnyRegister(), "Parameters": form, "scope": Scope.PACKAGE}
    made: Any = type(name, (), members)
    stand_in: ModelClass = made
    return stand_in
