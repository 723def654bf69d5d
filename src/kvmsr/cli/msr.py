# SPDX-License-Identifier: Apache-2.0
"""
kvmsr msr
---------

What is known about an MSR, and finding one.
"""

import json
import sys
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvmsr.cli._parameters import MsrIndex
from kvmsr.msr import Msr, catalog, handled

__all__ = ("about_kvm", "command")

_WIDE = 160


@click.command(
    epilog="Examples: kvmsr msr 0x1a0; kvmsr msr feature_control; kvmsr msr --search thermal"
)
@click.argument("index", required=False, type=MsrIndex(), metavar="[INDEX|NAME]")
@click.option("--search", metavar="WORDS", help="List the MSRs that have all these words.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(index: int | None, search: str | None, as_json: bool) -> int:
    """Tell what an MSR is, and what KVM does with it."""
    if (index is None) == (search is None):
        raise click.UsageError("name one MSR, or give --search WORDS")
    if search is not None:
        return _list(catalog().search(search), search, as_json)
    assert index is not None
    entry = catalog().get(index)
    if as_json:
        told = msgspec.to_builtins(entry) if entry else {"index": index, "name": ""}
        told |= {"index": f"{index:#x}", "kvm": about_kvm(index, entry)}
        if entry is None:
            told["where"] = catalog().neighbourhood(index)
        click.echo(json.dumps(told, indent=2))
    else:
        _print(index, entry)
    return 0


def about_kvm(index: int, entry: Msr | None) -> str:
    """Return in words what KVM does with an access to MSR *index*."""
    found = next((row for row in handled() if row.first <= index <= row.last), None)
    more = f" {entry.kvm}" if entry and entry.kvm else ""
    if found is None:
        return f"No KVM knows it: both accesses come out as 'unknown'.{more}"
    which = {(True, True): "Reads and writes", (True, False): "Reads", (False, True): "Writes"}
    known = which[found.reads, found.writes]
    other = "" if found.reads and found.writes else " The others come out as 'unknown'."
    return (
        f"{known} may be KVM's own, depending on version and CPUID; what it refuses comes out as"
        f" 'invalid'.{other}{more}"
    )


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def _print(index: int, entry: Msr | None) -> None:
    console = _console()
    if entry is None:
        where = catalog().neighbourhood(index)
        console.print(f"[bold]{index:#x}[/bold] has no name here: {where}.")
        console.print(f"KVM: {about_kvm(index, None)}", soft_wrap=True)
        return
    console.print(f"[bold]{entry.index:#x} {escape(entry.name)}[/bold]")
    for label, text in _lines(entry):
        console.print(f"  {label:9} {escape(text)}", soft_wrap=True)
    if entry.fields:
        console.print(fields_table(entry))


def _lines(entry: Msr) -> list[tuple[str, str]]:
    reset = "" if entry.reset is None else f"{entry.reset:#x}"
    lines = [
        ("what", entry.about),
        ("also", ", ".join(entry.aliases)),
        ("of", ", ".join((*entry.vendors, *([entry.models] if entry.models else [])))),
        ("scope", entry.scope),
        ("access", entry.access),
        ("reset", reset),
        ("kind", entry.category),
        ("KVM", about_kvm(entry.index, entry)),
        ("sources", "; ".join(entry.sources)),
    ]
    return [(label, text) for label, text in lines if text]


def fields_table(entry: Msr) -> Table:
    """Return a table of the fields, the highest first, as data sheets draw them."""
    table = Table("bits", "field", "kind", "meaning")
    for field in reversed(entry.fields):
        values = ", ".join(f"{number}: {text}" for number, text in field.values.items())
        unit = f"in {field.scale:g} {field.unit}" if field.unit else ""
        meaning = "; ".join(part for part in (field.about, values, unit) if part)
        table.add_row(field.span, field.name, field.kind, escape(meaning))
    return table


def _list(found: list[Msr], words: str, as_json: bool) -> int:
    if as_json:
        rows: list[dict[str, Any]] = [
            {"index": f"{msr.index:#x}", "name": msr.name, "about": msr.about} for msr in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return 0
    if not found:
        click.echo(f"no MSR has {words!r} in its name, its meaning or its fields")
        return 0
    table = Table("index", "name", "what")
    for msr in found:
        table.add_row(f"{msr.index:#x}", msr.name, escape(msr.about))
    _console().print(table)
    return 0
