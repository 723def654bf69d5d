# SPDX-License-Identifier: Apache-2.0
"""
MSRs on the command line
------------------------

Naming one, by index or by name, and completing names.
"""

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from kvmsr.errors import UsageError

if TYPE_CHECKING:
    from kvmsr.msr import Msr

__all__ = ("MSR", "find_msr", "parse_number")

_MAX_INDEX = 0xFFFF_FFFF


def parse_number(text: str, what: str, most: int = (1 << 64) - 1) -> int:
    """
    Return a number that a user wrote, ``0x1a0`` or ``416``.

    :raises UsageError: if it is none, or above *most*.
    """
    try:
        number = int(text.replace("_", ""), 0)
    except ValueError:
        raise UsageError(f"{what} {text!r} is no number; write 0x1a0 or 416") from None
    if not 0 <= number <= most:
        raise UsageError(f"{what} {text} is out of range: 0 to {most:#x}")
    return number


def find_msr(text: str) -> "tuple[int, Msr | None]":
    """
    Return the index of the MSR that *text* names or numbers, and its entry, if there is one.

    :raises UnknownMsrError: if it is a name that nothing has.
    :raises UsageError: if it is a number that no MSR can have.
    """
    from kvmsr.msr import catalog

    if text[:1].isdigit():
        index = parse_number(text, "MSR", _MAX_INDEX)
        return index, catalog().get(index)
    msr = catalog().lookup(text)
    return msr.index, msr


class _MsrType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """An MSR; a shell completes its name."""

    name = "msr"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin as the user has."""
        from kvmsr.msr import catalog

        begun = incomplete.lower()
        names = sorted({msr.name for msr in catalog() if msr.name.lower().startswith(begun)})
        return [CompletionItem(name) for name in names]


MSR = _MsrType()
