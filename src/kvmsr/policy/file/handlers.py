# SPDX-License-Identifier: Apache-2.0
"""
Handlers by name
----------------

Finding the function that a policy file calls ``module:function``.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler
from kvmsr.text import error_text, shown

__all__ = ("HandlerFinder",)


class HandlerFinder:
    """
    Finds functions for one reading of a policy.

    A module or package beside the policy file is loaded from there, once a reading, and under a
    name of its own: two policies may each have a ``handlers.py``, and what one run left in such a
    module's variables does not leak into the next. Any other module is imported as usual.
    """

    def __init__(self) -> None:
        self._beside: dict[Path, ModuleType] = {}

    def find(self, name: str, folder: Path, what: str = "function") -> Handler:
        """
        Return function *name*, written ``module:function``.

        :param folder: where the policy file is.
        :param what: what messages call it.
        :raises PolicyError: if there is none, or its module cannot be loaded.
        """
        match = re.fullmatch(r"([A-Za-z_][\w.]*):(\w+)", name)
        if not match:
            raise PolicyError(f"{shown(name)} names none: write module:{what}")
        try:
            module = self._module(match[1], folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit: a policy does not end the program
            raise PolicyError(
                f"module {shown(match[1])} cannot be imported, neither from {folder.resolve()} nor"
                f" from Python's path: {error_text(error)}"
            ) from None
        try:
            function = getattr(module, match[2], None)
        except Exception:  # a module may have a __getattr__ of its own
            function = None
        if not callable(function):
            raise PolicyError(f"module {shown(match[1])} has no {what} {shown(match[2])}")
        handler: Handler = function
        return handler

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
            # Python takes what stands before a dot for the name of a package.
            own_name = f"{name} in {folder}".replace(".", "\N{ONE DOT LEADER}")
            with _path_begins_with(folder):  # for what it imports itself
                self._beside[file] = _load(file, own_name, submodules)
        return self._beside[file]


def _load(file: Path, name: str, submodules: list[str] | None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=submodules)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for other in [other for other in sys.modules if other.startswith(f"{name}.")]:
        del sys.modules[other]  # of an earlier reading
    sys.modules[name] = module  # dataclasses, pickle and others look their module up there
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
