# SPDX-License-Identifier: Apache-2.0
"""
kvmsr decode
------------

A value of an MSR, field by field.
"""

import json
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvmsr.cli._parameters import MsrIndex, Number
from kvmsr.errors import FieldError
from kvmsr.msr import Decoded, catalog, decode

__all__ = ("command",)

_WIDE = 160


@click.command(epilog="Example: kvmsr decode IA32_MISC_ENABLE 0x850089")
@click.argument("index", type=MsrIndex(), metavar="INDEX|NAME")
@click.argument("value", type=Number(), metavar="VALUE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(index: int, value: int, as_json: bool) -> int:
    """Show the fields of an MSR's value, and reserved bits that are set."""
    entry = catalog().get(index)
    if entry is None:
        where = catalog().neighbourhood(index)
        raise FieldError(f"{index:#x} has no name here, {where}: nothing is known of its bits")
    decoded = decode(entry, value)
    if as_json:
        click.echo(json.dumps(_as_dict(decoded), indent=2))
    else:
        _print(decoded)
    return 0


def _as_dict(decoded: Decoded) -> dict[str, object]:
    return {
        "index": f"{decoded.msr.index:#x}",
        "name": decoded.msr.name,
        "value": f"{decoded.value:#x}",
        "fields": [
            {"name": field.name, "bits": field.span, "value": number, "meaning": meaning}
            for field, number, meaning in decoded
        ],
        "reserved": f"{decoded.reserved:#x}",
        "unknown": f"{decoded.unknown:#x}",
    }


def _print(decoded: Decoded) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    console.print(f"[bold]{escape(decoded.msr.name)} = {decoded.value:#x}[/bold]")
    if decoded.fields:
        table = Table("bits", "field", "value", "meaning")
        for field, number, meaning in reversed(decoded.fields):
            shown = f"{number:#x}" if number > 9 else f"{number}"
            said = " = ".join(part for part in (field.about, meaning) if part)
            style = "bold" if number else "dim"
            table.add_row(field.span, field.name, shown, escape(said), style=style)
        console.print(table)
    for bits, what in ((decoded.reserved, "reserved"), (decoded.unknown, "not known here")):
        if bits:
            numbers = ", ".join(str(bit) for bit in range(64) if bits >> bit & 1)
            console.print(f"[yellow]set, and {what}:[/yellow] {bits:#x} (bits {numbers})")
