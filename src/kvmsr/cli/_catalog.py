# SPDX-License-Identifier: Apache-2.0
"""
MSRs on the terminal
--------------------

Prints what the catalog says about MSRs, in plain lines and columns.
"""

import click

from kvmsr.cli._columns import bold, print_columns
from kvmsr.msr import Msr, catalog

__all__ = ("print_found", "print_msr")


def print_msr(index: int, entry: Msr | None, kvm: str) -> None:
    """
    Print what is known about MSR *index*.

    :param kvm: what KVM does with it.
    """
    if entry is None:
        click.echo(
            f"{bold(f'{index:#x}')} has no name in the catalog: {catalog().neighbourhood(index)}."
        )
        click.echo(f"KVM: {kvm}")
        return
    click.echo(bold(f"{entry.index:#x} {entry.name}"))
    for label, text in _lines(entry, kvm):
        click.echo(f"  {label:9} {text}")
    if entry.fields:
        click.echo()
        print_columns(("bits", "field", "kind", "meaning"), _fields(entry))


def _lines(entry: Msr, kvm: str) -> list[tuple[str, str]]:
    reset = "" if entry.reset is None else f"{entry.reset:#x}"
    lines = [
        ("what", entry.about),
        ("also", ", ".join(entry.aliases)),
        ("of", ", ".join(entry.cpus or entry.vendors)),
        ("scope", entry.scope),
        ("access", entry.access),
        ("reset", reset),
        ("kind", entry.category),
        ("KVM", kvm),
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
    rows = [(f"{msr.index:#x}", msr.name, msr.about) for msr in found]
    print_columns(("index", "name", "what"), rows)
