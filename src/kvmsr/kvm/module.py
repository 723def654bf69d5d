# SPDX-License-Identifier: Apache-2.0
"""
The kernel's module
-------------------

What the running kernel tells about KVM outside of /dev/kvm.
"""

from pathlib import Path

__all__ = ("ignore_msrs", "vendor_module")

_MODULES = Path("/sys/module")


def ignore_msrs(modules: Path = _MODULES) -> bool | None:
    """Return whether ``kvm.ignore_msrs`` is on; None where that cannot be read."""
    try:
        text = (modules / "kvm/parameters/ignore_msrs").read_text()
    except OSError:
        return None
    return text.strip() in ("Y", "1")


def vendor_module(modules: Path = _MODULES) -> str:
    """Return the module that does the work, kvm_intel say, or "" if none shows."""
    found = sorted(path.name for path in modules.glob("kvm_*"))
    return ", ".join(found)
