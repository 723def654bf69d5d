# SPDX-License-Identifier: Apache-2.0
"""
Words for MSRs
--------------

What people write where a command takes several MSRs.
"""

from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

import click
from click.shell_completion import CompletionItem

from kvmsr.cli._parameters import MsrIndex
from kvmsr.errors import UsageError
from kvmsr.msr import Msr, catalog
from kvmsr.text import shown

__all__ = ("MsrWord", "MsrWords")


class MsrWords(NamedTuple):
    """
    What a word stands for that names MSRs.

    :ivar text: the word.
    :ivar indices: the MSRs; of a range, those that the catalog has.
    :ivar many: whether it is a range or a pattern.
    :ivar pattern: the pattern of names; "" if it is none.
    """

    text: str
    indices: tuple[int, ...]
    many: bool = False
    pattern: str = ""

    def fits(self, msr: Msr) -> bool:
        """Return whether *msr*, one of the meanings of an MSR of these, is meant."""
        if not self.pattern:
            return True
        like = self.pattern.lower()
        return any(fnmatchcase(name.lower(), like) for name in (msr.name, *msr.aliases))


class MsrWord(click.ParamType[MsrWords]):
    """One MSR or several: a number, a name, a range, or a pattern of names."""

    name = "MSR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> MsrWords:
        """Return what *value* stands for."""
        if not isinstance(value, str):
            return cast(MsrWords, value)
        first, dash, last = value.partition("-")
        if any(letter in value for letter in "*?["):
            found = catalog().match(value)
            if not found:
                raise UsageError(f"no MSR has a name like {shown(value)}")
            return MsrWords(value, tuple(dict.fromkeys(msr.index for msr in found)), True, value)
        if dash and first[:1].isdigit():
            ends = MsrIndex().convert(first, param, ctx), MsrIndex().convert(last, param, ctx)
            if ends[0] > ends[1]:
                raise UsageError(f"{value}: the range ends before it begins")
            return MsrWords(value, catalog().indices(*ends), many=True)
        return MsrWords(value, (MsrIndex().convert(value, param, ctx),))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of MSRs."""
        return MsrIndex().shell_complete(ctx, param, incomplete)
