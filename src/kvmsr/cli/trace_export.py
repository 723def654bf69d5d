# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace export
------------------

Converts a trace for other programs.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from kvmsr.cli._traces import PATH, SYMBOLS, TRACE, read_symbols, report_cut, report_dropped
from kvmsr.errors import UsageError

__all__ = ("export",)

_PARQUET = "parquet"

_EXAMPLES = """\b
Examples:
  kvmsr trace export boot.arrows --to csv -o boot.csv
  kvmsr trace export boot.arrows --to jsonl | jq 'select(.outcome == "fault")'
  kvmsr trace export boot.arrows --to perfetto -o boot.json   # open it in ui.perfetto.dev
"""


@click.command(epilog=_EXAMPLES)
@TRACE
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["csv", "jsonl", "perfetto", _PARQUET]),
    help="The format.",
)
@SYMBOLS
@click.option("-o", "--output", type=PATH, help="Write it here; by default, to standard output.")
def export(file: Path, form: str, symbols: Path | None, output: Path | None) -> None:
    """
    Convert a trace for other programs.

    The formats are CSV, JSON lines, Perfetto (Chrome's trace event format, with a track for each
    vCPU), and Parquet. A trace itself is an Arrow IPC stream, which pandas, polars and DuckDB read
    without any conversion.
    """
    from kvmsr.trace.analysis.counting import CountingTrace
    from kvmsr.trace.analysis.export import FORMATS
    from kvmsr.trace.analysis.parquet import write_parquet

    if symbols is not None and form == _PARQUET:
        raise UsageError("--symbols: a Parquet file has addresses only; take another format")
    functions = read_symbols(symbols, file)
    with CountingTrace(file) as trace, _opened(output, file, form) as target:
        if form == _PARQUET:
            write_parquet(trace, target)
        else:
            for part in FORMATS[form](trace, functions):
                target.write(part)
        report_cut(file, trace.cut)
        report_dropped(file, trace.dropped)


@contextmanager
def _opened(output: Path | None, file: Path, form: str) -> Iterator[BinaryIO]:
    """Open the output. If something fails, a new file is removed."""
    if output is None:
        if form == _PARQUET and sys.stdout.isatty():
            raise UsageError("Parquet is not for the terminal: name a file with -o")
        yield sys.stdout.buffer
        return
    try:
        if output.exists() and output.samefile(file):
            raise UsageError(f"-o {output}: that is the trace itself; name another file")
        opened = output.open("wb")
    except OSError as error:
        raise UsageError(f"-o {output}: cannot be written: {error.strerror}") from None
    try:
        with opened:
            yield opened
    except BaseException as error:
        if output.is_file():
            output.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"-o {output}: cannot be written: {error.strerror}") from None
        raise
