# SPDX-License-Identifier: Apache-2.0
"""
Importing Python modules
------------------------

Resolves names by importing their modules, which runs them.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler
from kvmsr.policy.file.finder import split_name
from kvmsr.policy.registers import ModelClass
from kvmsr.text import error_text, shown

__all__ = ("Importer",)

_MAX_FILES: Final = 256
"""Number of a package's files that are watched."""


class Importer:
    """
    Imports modules for one reading of a policy.

    A module or package next to the policy file is loaded once per reading, under a unique name: two
    policies can each have a ``handlers.py``, and the module's variables start afresh with each
    reading. Any other module is imported as usual.
    """

    runs_code = True

    def __init__(self) -> None:
        self._beside: dict[Path, ModuleType] = {}

    @property
    def files(self) -> list[Path]:
        """Return the files of the modules next to policy files, and of all that packages have."""
        found: list[Path] = []
        for file in self._beside:
            is_package = file.name == "__init__.py"
            found += sorted(file.parent.rglob("*.py"))[:_MAX_FILES] if is_package else [file]
        return found

    def function(self, name: str, folder: Path) -> Handler:
        """Return the function *name*; see :class:`~kvmsr.policy.file.finder.Finder`."""
        function: Handler = self._find(name, folder, "function")
        return function

    def model(self, name: str, folder: Path, parameters: Mapping[str, Any]) -> ModelClass:
        """Return the register model *name*; see :class:`~kvmsr.policy.file.finder.Finder`."""
        model: ModelClass = self._find(name, folder, "Class")
        return model

    def _find(self, name: str, folder: Path, what: str) -> Any:
        module_name, attribute = split_name(name, what)
        try:
            module = self._module(module_name, folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # even SystemExit: a policy must not end the program
            raise PolicyError(
                f"cannot import module {shown(module_name)} from {folder.resolve()} or Python's"
                f" path: {error_text(error)}"
            ) from None
        try:
            found = getattr(module, attribute, None)
        except Exception:  # from the module's own __getattr__
            found = None
        if not callable(found):
            raise PolicyError(f"module {shown(module_name)} has no {what} {shown(attribute)}")
        return found

    def _module(self, name: str, folder: Path) -> ModuleType:
        first, *rest = name.split(".")
        package = (folder / first / "__init__.py").resolve()
        if package.is_file():
            module = self._load(package, first, [str(package.parent)])
            if not rest:
                return module
            with _path_begins_with(package.parent.parent):
                return importlib.import_module(".".join((module.__name__, *rest)))
        file = (folder / first).joinpath(*rest).with_suffix(".py").resolve()
        if file.is_file():
            return self._load(file, name)
        return importlib.import_module(name)

    def _load(self, file: Path, name: str, submodules: list[str] | None = None) -> ModuleType:
        if file not in self._beside:
            folder = file.parent if submodules is None else file.parent.parent
            # Python takes everything before a dot for the name of a package.
            own_name = f"{name} in {folder}".replace(".", "\N{ONE DOT LEADER}")
            with _path_begins_with(folder):  # for its own imports
                self._beside[file] = _load(file, own_name, submodules)
        return self._beside[file]


def _load(file: Path, name: str, submodules: list[str] | None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=submodules)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for other in [other for other in sys.modules if other.startswith(f"{name}.")]:
        del sys.modules[other]  # from an earlier reading
    sys.modules[name] = module  # dataclasses, pickle and others look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _path_begins_with(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the module may have changed it
            sys.path.remove(str(folder))
