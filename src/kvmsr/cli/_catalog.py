# SPDX-License-Identifier: Apache-2.0
"""
MSRs on the terminal
--------------------

Prints what the catalog says about MSRs, in plain lines and columns.
"""

import click

from kvmsr.cli._columns import bold, print_columns
from kvmsr.msr import Msr

__all__ = ("print_found", "print_msr", "print_nameless")


def print_msr(entry: Msr, kvm: list[str]) -> None:
    """
    Print what is known about an MSR.

    :param kvm: what KVM does with it.
    """
    click.echo(bold(f"{entry.index:#x} {entry.name}"))
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
    click.echo(f"{bold(f'{index:#x}')} has no name {why}.")
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
        meaning = "; ".join(part for part in (field.about, values, field.steps) if part)
        rows.append((field.span, field.name, field.kind, meaning))
    return rows


def print_found(found: list[Msr]) -> None:
    """Print one line per MSR."""
    rows = []
    for msr in found:
        where = f"({', '.join(msr.cpus)})" if msr.cpus else ""
        rows.append((f"{msr.index:#x}", msr.name, f"{msr.about} {where}".strip()))
    print_columns(("index", "name", "what"), rows)
