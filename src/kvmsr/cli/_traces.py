# SPDX-License-Identifier: Apache-2.0
"""
Trace files for commands
------------------------

Shared by the commands that read trace files. They import numpy when they run, not for their help.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from kvmsr.cli._output import echo
from kvmsr.cli._parameters import MsrIndex
from kvmsr.errors import PolicyError, UsageError
from kvmsr.text import counted, shown

if TYPE_CHECKING:
    from kvmsr.symbols import Symbols
    from kvmsr.trace.file import Head

__all__ = (
    "JSON", "PATH", "SYMBOLS", "TRACE", "TRACES", "Duration", "MsrSelector", "about",
    "dropped_text", "place", "read_symbols", "report_cut", "report_dropped",
)  # fmt: skip

PATH: Final = click.Path(path_type=Path)
TRACE: Final = click.argument("file", type=PATH)
TRACES: Final = click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
SYMBOLS: Final = click.option(
    "--symbols",
    metavar="FILE",
    type=PATH,
    help="Name functions: the guest's kernel (vmlinuz or vmlinux), its System.map, or a copy of its"
    " /proc/kallsyms.",
)
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")

_MANY_RIPS: Final = 256  # enough to say where a kernel was
_UNITS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "µs": 10**3, "ns": 1}


class MsrSelector(click.ParamType[tuple[tuple[int, int], ...]]):
    """MSRs as a policy selects them: a number, a range, a name, or a name pattern."""

    name = "MSRS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        """Return the first and the last MSR of each range."""
        from kvmsr.policy.selector import parse_msrs

        if not isinstance(value, str):
            found: tuple[tuple[int, int], ...] = value
            return found
        try:
            return parse_msrs(value)
        except PolicyError as error:
            raise UsageError(f"--msr {shown(value)}: {error}") from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of MSRs."""
        return MsrIndex().shell_complete(ctx, param, incomplete)


class Duration(click.ParamType[int]):
    """A time in nanoseconds, written in seconds or with a unit: 1.5, 10ms."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return *value* in nanoseconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*(s|ms|us|µs|ns|)", str(value))
        if match is None:
            raise UsageError(f"{shown(value)} is not a time: write seconds, or 10ms, 250us, 2s")
        return int(float(match[1]) * _UNITS[match[2] or "s"])


def read_symbols(file: Path | None, trace: Path) -> "Symbols | None":
    """
    Return the functions in *file*, moved to where they were in a trace; None without a file.

    The trace is read for that, if it can be read twice.

    :raises SymbolError: if it cannot be read.
    :raises TraceError: if the trace cannot be read.
    """
    if file is None:
        return None
    from kvmsr.symbols import Symbols

    functions = Symbols.read(file)
    if trace.is_file():
        rips, head = _rips(trace)
        place(trace, functions, rips, head)
    return functions


def _rips(path: Path) -> tuple[set[int], "Head"]:
    import numpy as np

    from kvmsr.trace.file import Trace
    from kvmsr.trace.file.columns import RIP

    found: set[int] = set()
    with Trace(path) as trace:
        for rows in trace.batches():
            if len(found) < _MANY_RIPS:
                found.update(np.unique(rows["rip"][rows["has"] & RIP != 0]).tolist())
    return found, trace.head


def place(path: Path, symbols: "Symbols", rips: Iterable[int], head: "Head") -> None:
    """Find out where the guest's kernel was, from a trace's RIPs, and report if that is unsure."""
    rips = set(rips)
    if not rips or symbols.find_slide(rips):
        return
    # kvmsr run loads a kernel where its symbols say, so there it takes no majority.
    if head.command == "run" and not symbols.slide and symbols.have_msr(rips):
        return
    echo(
        f"kvmsr: {path}: the RIPs do not say where the kernel was: the names of functions may"
        " be wrong",
        err=True,
    )


def report_cut(path: Path, cut: str) -> None:
    """Print on standard error why a trace ends early, if it does."""
    if cut:
        echo(f"kvmsr: {path}: the trace is incomplete, and was read up to there: {cut}", err=True)


def dropped_text(dropped: int) -> str:
    """Return a sentence about accesses that were not recorded, or "" if there are none."""
    if not dropped:
        return ""
    accesses = counted(dropped, "access", "accesses")
    return f"{accesses} came too fast to be recorded, and were only counted"


def report_dropped(path: Path, dropped: int) -> None:
    """Print on standard error how many accesses were not recorded, if any."""
    if dropped:
        echo(f"kvmsr: {path}: {dropped_text(dropped)}", err=True)


def about(path: Path, head: "Head") -> str:
    """Return a line about a trace."""
    words = (
        f"{path}: kvmsr {head.command}",
        f"of {head.image}" if head.image else "",
        f"on {head.backend}" if head.backend else "",
        f"under {head.policy}" if head.policy else "",
    )
    return f"{' '.join(word for word in words if word)} (grade {head.grade})"
