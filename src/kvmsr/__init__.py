# SPDX-License-Identifier: Apache-2.0
"""
kvmsr
-----

A policy for every model-specific register a KVM guest touches.

``__init__.pyi`` lists the names of the library's face. Each is imported from its room when it is
first used, so that ``import kvmsr`` costs next to nothing.
"""

from typing import Any

import lazy_loader

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__ or name.startswith("_"):
        return _find(name)
    from difflib import get_close_matches

    near = get_close_matches(name, __all__, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module 'kvmsr' has no attribute {name!r}{hint}")
