# SPDX-License-Identifier: Apache-2.0
"""
MSRs on the terminal
--------------------

Prints MSRs and their values. Importing rich takes as long as everything else in a look-up, so this
module is imported only when there is something to print.
"""

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvmsr.msr import Decoded, Msr, catalog

__all__ = ("print_decoded", "print_found", "print_msr")

_WIDE = 160


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def print_msr(index: int, entry: Msr | None, kvm: str) -> None:
    """
    Print what is known about MSR *index*.

    :param kvm: what KVM does with it.
    """
    console = _console()
    if entry is None:
        where = catalog().neighbourhood(index)
        console.print(f"[bold]{index:#x}[/bold] has no name in the catalog: {where}.")
        console.print(f"KVM: {kvm}", soft_wrap=True)
        return
    console.print(f"[bold]{entry.index:#x} {escape(entry.name)}[/bold]")
    for label, text in _lines(entry, kvm):
        console.print(f"  {label:9} {escape(text)}", soft_wrap=True)
    if entry.fields:
        console.print(_fields(entry))


def _lines(entry: Msr, kvm: str) -> list[tuple[str, str]]:
    reset = "" if entry.reset is None else f"{entry.reset:#x}"
    lines = [
        ("what", entry.about),
        ("also", ", ".join(entry.aliases)),
        ("of", ", ".join((*entry.vendors, *([entry.models] if entry.models else [])))),
        ("scope", entry.scope),
        ("access", entry.access),
        ("reset", reset),
        ("kind", entry.category),
        ("KVM", kvm),
        ("sources", "; ".join(entry.sources)),
    ]
    return [(label, text) for label, text in lines if text]


def _fields(entry: Msr) -> Table:
    """Return a table of the fields, the highest first, as in data sheets."""
    table = Table("bits", "field", "kind", "meaning")
    for field in reversed(entry.fields):
        values = ", ".join(f"{number}: {text}" for number, text in field.values.items())
        unit = f"in {field.scale:g} {field.unit}" if field.unit else ""
        meaning = "; ".join(part for part in (field.about, values, unit) if part)
        table.add_row(field.span, field.name, field.kind, escape(meaning))
    return table


def print_found(found: list[Msr]) -> None:
    """Print one line per MSR."""
    table = Table("index", "name", "what")
    for msr in found:
        table.add_row(f"{msr.index:#x}", msr.name, escape(msr.about))
    _console().print(table)


def print_decoded(decoded: Decoded) -> None:
    """Print the fields of a value, and the set bits that belong to no field."""
    console = _console()
    console.print(f"[bold]{escape(decoded.msr.name)} = {decoded.value:#x}[/bold]")
    if decoded.fields:
        table = Table("bits", "field", "value", "meaning")
        for field, number, meaning in reversed(decoded.fields):
            shown = f"{number:#x}" if number > 9 else f"{number}"
            said = " = ".join(part for part in (field.about, meaning) if part)
            style = "bold" if number else "dim"
            table.add_row(field.span, field.name, shown, escape(said), style=style)
        console.print(table)
    for bits, what in ((decoded.reserved, "reserved"), (decoded.unknown, "unknown to the catalog")):
        if bits:
            numbers = ", ".join(str(bit) for bit in range(64) if bits >> bit & 1)
            console.print(f"[yellow]set, but {what}:[/yellow] {bits:#x} (bits {numbers})")
