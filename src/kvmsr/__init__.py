# SPDX-License-Identifier: Apache-2.0
"""
kvmsr
-----

A policy for every model-specific register a KVM guest touches.

``__init__.pyi`` lists the names of the library's face. Each is imported from its room when it is
first used, so that ``import kvmsr`` costs next to nothing.
"""

from functools import cache
from typing import Any


@cache
def _face() -> tuple[Any, Any, list[str]]:
    """Return what finds a name, what lists them all, and the list; the stub is read for that."""
    import lazy_loader

    face: tuple[Any, Any, list[str]] = lazy_loader.attach_stub(__name__, __file__)
    return face


def __dir__() -> list[str]:
    names: list[str] = _face()[1]()
    return names


def __getattr__(name: str) -> Any:
    find, _, names = _face()
    if name == "__all__":
        return names
    if name in names:
        return find(name)
    from difflib import get_close_matches

    near = get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module 'kvmsr' has no attribute {name!r}{hint}")
