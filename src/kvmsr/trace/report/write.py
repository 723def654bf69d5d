# SPDX-License-Identifier: Apache-2.0
"""
Writing a report
----------------

Reads traces, and writes the page: whole, or not at all.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmsr.errors import UsageError
from kvmsr.symbols import Symbols
from kvmsr.trace.report.collect import collect
from kvmsr.trace.report.render import render

__all__ = ("write_report",)


def write_report(
    paths: Sequence[Path],
    output: Path,
    step: Callable[[int], None] = lambda rows: None,
    symbols: Path | None = None,
) -> int:
    """
    Write a report of a trace, or of two to compare.

    :param paths: one or two trace files.
    :param output: the page. A file that is there is replaced.
    :param step: called now and then with the number of rows of a trace read so far.
    :param symbols: a file with the functions of the guests' kernel, to name them.
    :return: the size of the page, in bytes.
    :raises SymbolError: if the symbols cannot be read.
    :raises TraceError: if a trace cannot be read.
    :raises UsageError: if the page cannot be written.
    """
    if output.exists() and any(path.exists() and output.samefile(path) for path in paths):
        raise UsageError(f"-o {output}: that is the trace itself; give the report another name")
    if output.exists() and not output.is_file():
        raise UsageError(f"-o {output}: cannot be written: it is not a regular file")
    if not output.parent.is_dir():
        raise UsageError(f"-o {output}: cannot be written: there is no folder {output.parent}")
    functions = [None if symbols is None else Symbols.read(symbols) for _ in paths]
    found = [collect(path, step, one) for path, one in zip(paths, functions, strict=True)]
    page = render(found).encode()
    try:
        number, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        try:
            with open(number, "wb") as file:
                file.write(page)
                os.fchmod(file.fileno(), 0o666 & ~_umask())
            Path(name).replace(output)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise UsageError(f"-o {output}: cannot be written: {error.strerror}") from None
    return len(page)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
