# SPDX-License-Identifier: Apache-2.0
"""
Trace files for commands
------------------------

Shared by the commands that read trace files. They import numpy when they run, not for their help.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kvmsr.cli._output import echo
from kvmsr.text import counted

if TYPE_CHECKING:
    from kvmsr.trace.file import Head

__all__ = ("JSON", "TRACE", "TRACES", "about", "nanoseconds", "report_cut", "report_dropped")

_PATH: Final = click.Path(path_type=Path)
TRACE: Final = click.argument("file", type=_PATH)
TRACES: Final = click.argument("files", type=_PATH, nargs=-1, required=True, metavar="FILE...")
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


def report_cut(path: Path, cut: str) -> None:
    """Print on standard error why a trace ends early, if it does."""
    if cut:
        echo(f"kvmsr: {path}: the trace is incomplete, and shown up to there: {cut}", err=True)


def dropped_text(dropped: int) -> str:
    """Return a sentence about accesses that were not recorded, or "" if there are none."""
    if not dropped:
        return ""
    accesses = counted(dropped, "access", "accesses")
    return f"{accesses} came too fast to be recorded; they were only counted"


def report_dropped(path: Path, dropped: int) -> None:
    """Print on standard error how many accesses were not recorded, if any."""
    if dropped:
        echo(f"kvmsr: {path}: {dropped_text(dropped)}", err=True)


def about(path: Path, head: "Head") -> str:
    """Return a line about a trace."""
    words: Iterable[str] = (
        f"{path}: kvmsr {head.command}",
        f"of {head.image}" if head.image else "",
        f"on {head.backend}" if head.backend else "",
        f"under {head.policy}" if head.policy else "",
    )
    return f"{' '.join(word for word in words if word)} (grade {head.grade})"


def nanoseconds(number: int) -> str:
    """Return a duration in the unit that suits it, with three digits: 1.23 µs."""
    for unit, factor in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if number >= factor:
            return (
                f"{number / factor:.3g} {unit}"
                if number < 1000 * factor
                else f"{number / factor:,.0f} {unit}"
            )
    return f"{number} ns"
