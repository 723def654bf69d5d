# SPDX-License-Identifier: Apache-2.0
"""
The native core
---------------

The parts that must be fast or run in another process, in C: the compiled policy and its evaluator,
the run loop, and the shim of ``kvmsr exec``. The core is optional: without it guests run slower,
and ``kvmsr exec`` does not work.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ("REMEDY", "SHIM", "SOFT", "available", "ffi", "lib", "why_not")

REMEDY = (
    "install a C compiler and Python's headers (on Debian: gcc and python3-dev), then kvmsr again"
)

ffi: Any = None
lib: Any = None

try:
    _core = import_module("kvmsr.native._core")
except ImportError as error:
    _why = str(error)
else:
    _why = ""
    ffi, lib = _core.ffi, _core.lib


def _built(name: str) -> Path:
    folder = Path(__file__).parent
    return next(iter(sorted(folder.glob(f"{name}.*so"))), folder / f"{name}.so")


SHIM = _built("shim")
"""Path of the library that is preloaded into VMMs."""

SOFT = _built("soft")
"""Path of the library that is preloaded behind it, where the soft backend is to be their KVM."""


def available() -> bool:
    """Return whether the native core was built."""
    return not _why


def why_not() -> str:
    """Return why there is no native core and what to do about it; "" if there is one."""
    if available():
        return ""
    return f"kvmsr's native core is not there ({_why}): {REMEDY}"
