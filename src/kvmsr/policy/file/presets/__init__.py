# SPDX-License-Identifier: Apache-2.0
"""
Presets
-------

The policies that come with kvmsr, as files. ``extends = ["preset:quiet"]`` refers to one.
"""

from importlib import resources

__all__ = ("preset_names", "preset_text")


def preset_names() -> list[str]:
    """Return the names of the presets."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".toml"))


def preset_text(name: str) -> str | None:
    """Return the text of preset *name*, or None if there is none."""
    if name not in preset_names():
        return None
    return resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
