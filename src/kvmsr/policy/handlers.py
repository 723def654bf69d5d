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
from pathlib import Path
from types import ModuleType

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler

__all__ = ("HandlerFinder",)


class HandlerFinder:
    """
    Finds functions for one reading of a policy.

    A module beside the policy file is loaded from there, once a reading, and under a name of its
    own: two policies may each have a ``handlers.py``, and what one run left in such a module's
    variables does not leak into the next. Any other module is imported as usual.
    """

    def __init__(self) -> None:
        self._beside: dict[Path, ModuleType] = {}

    def find(self, name: str, folder: Path) -> Handler:
        """
        Return function *name*, written ``module:function``.

        :param folder: where the policy file is.
        :raises PolicyError: if there is none, or its module cannot be loaded.
        """
        match = re.fullmatch(r"([A-Za-z_][\w.]*):(\w+)", name)
        if not match:
            raise PolicyError(f"{name!r} is no handler: write module:function")
        try:
            module = self._module(match[1], folder)
        except (Exception, SystemExit) as error:
            raise PolicyError(
                f"module {match[1]!r} cannot be imported, neither from {folder.resolve()} nor from"
                f" Python's path: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from None
        function = getattr(module, match[2], None)
        if not callable(function):
            raise PolicyError(f"module {match[1]!r} has no function {match[2]!r}")
        handler: Handler = function
        return handler

    def _module(self, name: str, folder: Path) -> ModuleType:
        file = (folder / Path(*name.split("."))).with_suffix(".py").resolve()
        if not file.is_file():
            return importlib.import_module(name)
        if file not in self._beside:
            self._beside[file] = _load(file, f"{name} in {file.parent}")
        return self._beside[file]


def _load(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and others look their module up there
    sys.path.insert(0, str(file.parent))  # for what it imports itself
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module
