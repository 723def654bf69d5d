# SPDX-License-Identifier: Apache-2.0
"""
kvmsr report
------------

Writes a page about a trace, or about two to compare.
"""

import sys
import time
from pathlib import Path
from typing import Final

import click

from kvmsr.cli._names import NAMES_OF_GUEST, speak_of_trace
from kvmsr.cli._output import echo
from kvmsr.cli._traces import SYMBOLS

__all__ = ("command",)

_PATIENCE: Final = 2.0
_PERIOD: Final = 0.5

_EXAMPLES = """\b
Examples:
  kvmsr report boot.arrows -o report.html
  kvmsr report boot.arrows --symbols vmlinuz -o report.html
  kvmsr report before.arrows after.arrows -o compare.html
"""

_PATH = click.Path(path_type=Path)


@click.command("report", epilog=_EXAMPLES)
@click.argument("file", type=_PATH)
@click.argument("other", metavar="[FILE2]", type=_PATH, required=False)
@SYMBOLS
@NAMES_OF_GUEST
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=_PATH,
    required=True,
    help="The HTML page to write. A file that is there is replaced.",
)
def command(file: Path, other: Path | None, symbols: Path | None, output: Path) -> None:
    """
    Write a page about a trace, or about two to compare.

    The page is one file that works offline: a timeline of the accesses, a table by MSR, faults and
    who caused them, latencies, the policy with the rules that decided something and those that did
    not, and rules to begin with.
    """
    from kvmsr.trace.report import write_report  # numpy and jinja2 take a while, help is to be fast

    paths = [file] if other is None else [file, other]
    speak_of_trace(file)
    with _Steps() as steps:
        size = write_report(paths, output, steps, symbols)
    echo(f"{output}: {size / 1e3:,.0f} kB")


class _Steps:
    """Shows, after two seconds, how many rows have been read, if standard error is a terminal."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PATIENCE
        self._shown = False

    def __call__(self, rows: int) -> None:
        if time.monotonic() >= self._next and sys.stderr.isatty():
            self._next, self._shown = time.monotonic() + _PERIOD, True
            sys.stderr.write(f"\rreading, {rows:,} rows; Ctrl-C ends it\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
