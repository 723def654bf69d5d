# SPDX-License-Identifier: Apache-2.0
"""
MSRs on the terminal
--------------------

Prints MSRs and their values in plain lines and columns. Importing rich would take longer than the
rest of a look-up.
"""

import os
import sys
import textwrap
from collections.abc import Container, Sequence
from functools import partial
from typing import Final

import click

from kvmsr.msr import Decoded, Msr

__all__ = ("print_columns", "print_decoded", "print_found", "print_msr", "print_nameless")

_GAP: Final = "  "
_LEAST: Final = 30
"""The smallest width of the last column, however narrow the terminal is."""
_ENDLESS: Final = 1 << 20

_bold: Final = partial(click.style, bold=True)


def print_msr(entry: Msr, kvm: list[str]) -> None:
    """
    Print what is known about an MSR.

    :param kvm: what KVM does with it.
    """
    click.echo(_bold(f"{entry.index:#x} {entry.name}"))
    for label, text in _lines(entry, kvm):
        click.echo(f"  {label:9} {text}")
    if entry.fields:
        click.echo()
        print_columns(("bits", "field", "kind", "meaning"), _fields(entry))


def print_nameless(index: int, why: str, kvm: list[str]) -> None:
    """
    Print what is known about MSR *index*, which has no name.

    :param why: where it has none, and what there is instead.
    :param kvm: what KVM does with it.
    """
    click.echo(f"{_bold(f'{index:#x}')} has no name {why}.")
    for line in kvm:
        click.echo(f"KVM: {line}")


def _lines(entry: Msr, kvm: list[str]) -> list[tuple[str, str]]:
    reset = "" if entry.reset is None else f"{entry.reset:#x}"
    lines = [
        ("what", entry.about),
        ("also", ", ".join(entry.aliases)),
        ("of", ", ".join(entry.cpus or entry.vendors)),
        ("scope", entry.scope),
        ("access", entry.access),
        ("reset", reset),
        ("kind", entry.category),
        *zip(("KVM", *[""] * len(kvm)), kvm, strict=False),
        ("sources", "; ".join(entry.sources)),
    ]
    return [(label, text) for label, text in lines if text]


def _fields(entry: Msr) -> list[tuple[str, ...]]:
    """Return one row per field, the highest first, as in data sheets."""
    rows: list[tuple[str, ...]] = []
    for field in reversed(entry.fields):
        values = ", ".join(f"{number}: {text}" for number, text in field.values.items())
        unit = f"in {field.scale:g} {field.unit}" if field.unit else ""
        meaning = "; ".join(part for part in (field.about, values, unit) if part)
        rows.append((field.span, field.name, field.kind, meaning))
    return rows


def print_found(found: list[Msr]) -> None:
    """Print one line per MSR."""
    rows = []
    for msr in found:
        where = f"({', '.join(msr.cpus)})" if msr.cpus else ""
        rows.append((f"{msr.index:#x}", msr.name, f"{msr.about} {where}".strip()))
    print_columns(("index", "name", "what"), rows)


def print_decoded(decoded: Decoded) -> None:
    """Print the fields of a value, and the set bits that belong to no field."""
    click.echo(_bold(f"{decoded.msr.name} = {decoded.value:#x}"))
    rows: list[tuple[str, ...]] = []
    emphasised = set()
    for field, number, meaning in reversed(decoded.fields):
        shown = f"{number:#x}" if number > 9 else f"{number}"
        said = " = ".join(part for part in (field.about, meaning) if part)
        if number:
            emphasised.add(len(rows))
        rows.append((field.span, field.name, shown, said))
    if rows:
        print_columns(("bits", "field", "value", "meaning"), rows, emphasised)
    for bits, what in ((decoded.reserved, "reserved"), (decoded.unknown, "unknown to the catalog")):
        if bits:
            numbers = ", ".join(str(bit) for bit in range(64) if bits >> bit & 1)
            click.echo(f"{_bold(f'set, but {what}:')} {bits:#x} (bits {numbers})")


def print_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], emphasised: Container[int] = ()
) -> None:
    """Print rows in columns; the last column is wrapped at the width of the terminal."""
    *widths, _ = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    left = sum(widths) + len(_GAP) * len(widths)
    wrapper = textwrap.TextWrapper(
        width=max(_width(), left + _LEAST), subsequent_indent=" " * left, break_on_hyphens=False
    )
    for number, row in enumerate((header, *rows), -1):
        cells = zip(row[:-1], widths, strict=True)
        wrapper.initial_indent = "".join(f"{cell:{width}}{_GAP}" for cell, width in cells)
        text = "\n".join(wrapper.wrap(row[-1])) or wrapper.initial_indent.rstrip()
        if number < 0:
            text = click.style(text, underline=True)
        click.echo(_bold(text) if number in emphasised else text)


def _width() -> int:
    """Return the width of the terminal; output to anything else is not wrapped."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _ENDLESS
    except (OSError, ValueError):
        return _ENDLESS
