# SPDX-License-Identifier: Apache-2.0
"""
KVM's kernel modules
--------------------

What the running kernel says about KVM outside of /dev/kvm, under /sys/module.
"""

from pathlib import Path

__all__ = ("ignore_msrs", "vendor_module")

_MODULES = Path("/sys/module")


def ignore_msrs(modules: Path = _MODULES) -> bool | None:
    """Return whether ``kvm.ignore_msrs`` is on, or None if that cannot be read."""
    try:
        text = (modules / "kvm/parameters/ignore_msrs").read_text()
    except OSError:
        return None
    return text.strip() in ("Y", "1")


def vendor_module(modules: Path = _MODULES) -> str:
    """Return the name of the vendor module, such as kvm_intel, or "" if none is loaded."""
    found = sorted(path.name for path in modules.glob("kvm_*"))
    return ", ".join(found)
