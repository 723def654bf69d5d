# SPDX-License-Identifier: Apache-2.0
"""
Parameters
----------

What commands take, and how a shell completes it.
"""

from typing import Any

import click
from click.shell_completion import CompletionItem

from kvmsr.errors import UnknownMsrError, UsageError
from kvmsr.msr import catalog

__all__ = ("MsrIndex", "Number", "PolicyFile", "Preset")


class PolicyFile(click.ParamType[str]):
    """A file, or ``preset:NAME``."""

    name = "FILE"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the presets, and files."""
        from kvmsr.policy.file.parse import PRESET
        from kvmsr.policy.file.presets import preset_names

        presets = [f"{PRESET}{name}" for name in preset_names()]
        fitting = [CompletionItem(name) for name in presets if name.startswith(incomplete)]
        return [*fitting, CompletionItem(incomplete, type="file")]


class Number(click.ParamType[int]):
    """A number of 64 bits, as 0x35 or 53."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        try:
            number = int(value, 0)
        except ValueError:
            raise UsageError(f"{value!r} is no number: write 0x35 or 53") from None
        if not 0 <= number < 1 << 64:
            raise UsageError(f"{value} is out of range: it does not fit 64 bits")
        return number


class MsrIndex(click.ParamType[int]):
    """An MSR, by number or name."""

    name = "MSR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Find it."""
        if isinstance(value, int):
            return value
        try:
            index = int(value, 0)
        except ValueError:
            try:
                return catalog().lookup(value).index
            except UnknownMsrError as error:
                raise UsageError(str(error)) from None
        if not 0 <= index < 1 << 32:
            raise UsageError(f"{value} is out of range: MSRs go from 0 to 0xffffffff")
        return index

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer names."""
        wanted = incomplete.lower()
        return [
            CompletionItem(msr.name, help=f"{msr.index:#x}")
            for msr in catalog()
            if msr.name.lower().startswith(wanted)
        ]


class Preset(click.ParamType[str]):
    """The name of a preset."""

    name = "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the names."""
        from kvmsr.policy.file.presets import preset_names

        return [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]
