# SPDX-License-Identifier: Apache-2.0
"""
Columns
-------

Prints rows in columns, without rich: importing that would take longer than the rest of a look-up.
"""

import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import click

__all__ = ("bold", "dim", "print_columns", "print_wrapped")

_GAP: Final = "  "
_LEAST: Final = 30
"""The smallest width of the last column, however narrow the terminal is."""
_ENDLESS: Final = 1 << 20

Style = Callable[[str], str]
bold: Final[Style] = partial(click.style, bold=True)
dim: Final[Style] = partial(click.style, dim=True)
_underline: Final[Style] = partial(click.style, underline=True)


def print_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[int, Style] | None = None
) -> None:
    """
    Print rows in columns; the last column is wrapped at the width of the terminal.

    :param styles: how rows look, by their numbers.
    """
    *widths, _ = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    left = sum(widths) + len(_GAP) * len(widths)
    wrapper = textwrap.TextWrapper(
        width=max(_width(), left + _LEAST), subsequent_indent=" " * left, break_on_hyphens=False
    )
    for number, row in enumerate((header, *rows), -1):
        cells = zip(row[:-1], widths, strict=True)
        wrapper.initial_indent = "".join(f"{cell:{width}}{_GAP}" for cell, width in cells)
        text = "\n".join(wrapper.wrap(row[-1])) or wrapper.initial_indent.rstrip()
        style = _underline if number < 0 else (styles or {}).get(number, str)
        click.echo(style(text))


def print_wrapped(text: str, indent: int, style: Style = str) -> None:
    """Print a paragraph; its lines from the second on are indented."""
    wrapped = textwrap.wrap(
        text, width=max(_width(), indent + _LEAST), subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )  # fmt: skip
    click.echo(style("\n".join(wrapped)))


def _width() -> int:
    """Return the width of the terminal; output to anything else is not wrapped."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _ENDLESS
    except (OSError, ValueError):
        return _ENDLESS
