# SPDX-License-Identifier: Apache-2.0
"""
Values on the terminal
----------------------

Prints values of MSRs, field by field.
"""

from collections.abc import Sequence
from typing import Final

import click

from kvmsr.cli._columns import Style, bold, dim, print_columns, print_wrapped
from kvmsr.cli._values import cpus_of
from kvmsr.msr import Decoded, FieldValue, Msr

__all__ = ("print_decoded", "print_difference", "print_heading", "print_others")

_UNKNOWN: Final = {"reserved": "reserved", "unknown": "unknown to the catalog"}


def print_decoded(decoded: Decoded, *, every: bool) -> None:
    """
    Print the fields of a value, and the set bits that belong to no field.

    :param every: whether each field that is 0 gets a line of its own.
    """
    click.echo(bold(f"{decoded.msr.name} = {decoded.value:#x}"))
    _print_summary(decoded.summary)
    if not decoded.msr.fields:
        click.echo(f"The catalog has no fields for it. {_bits(decoded.value)}")
        return
    shown = [one for one in reversed(decoded.fields) if every or one.matters]
    styles: dict[int, Style] = {n: bold if one.number else dim for n, one in enumerate(shown)}
    if shown:
        rows = [(one.field.span, one.field.name, one.shown, one.said) for one in shown]
        print_columns(("bits", "field", "value", "meaning"), rows, styles)
    quiet = [one.field.name for one in decoded.fields if not every and not one.matters]
    if quiet:
        print_wrapped(f"zero: {', '.join(quiet)}", 6, dim)
    for what, bits in decoded.rest:
        click.echo(f"{bold(f'set, but {_UNKNOWN[what]}:')} {bits:#x} ({_numbers(bits)})")
    _print_assumed(decoded)


def print_heading(msr: Msr, *, first: bool) -> None:
    """Print for which CPUs a meaning of an MSR holds, after a blank line if it is not the first."""
    click.echo(("" if first else "\n") + f"On {cpus_of(msr)}:")


def print_others(others: Sequence[Decoded]) -> None:
    """Print further meanings of a value, in a line or two each."""
    for one in others:
        print_heading(one.msr, first=False)
        print_wrapped(f"  {one.msr.name}: {one.brief or '0'}", 2)
    click.echo("\nGive --cpu for one of these field by field, or --all for all of them.")


def _print_summary(text: str) -> None:
    if text:
        print_wrapped(f"  {text}", 2)


def _print_assumed(decoded: Decoded) -> None:
    for name, value in decoded.assumed.items():
        click.echo(f"assumed: {name} = {value:#x} (--with {name}=VALUE gives another)")


def _bits(value: int) -> str:
    return f"Set: {_numbers(value)}; in decimal {value}." if value else "No bit is set."


def _numbers(bits: int) -> str:
    found = [str(bit) for bit in range(64) if bits >> bit & 1]
    return f"bit{'s' if len(found) > 1 else ''} {', '.join(found)}"


def print_difference(
    before: Decoded, after: Decoded, differing: Sequence[tuple[FieldValue, FieldValue]]
) -> None:
    """
    Print what differs between two values.

    :param differing: the fields that differ, before and after.
    """
    click.echo(bold(f"{before.msr.name}: {before.value:#x} → {after.value:#x}"))
    if before.summary != after.summary:
        _print_summary(f"{before.summary} → {after.summary}")
    rows = [
        (one.field.span, one.field.name, f"{one.shown} → {other.shown}", _change(one, other))
        for one, other in reversed(differing)
    ]
    if rows:
        print_columns(("bits", "field", "value", "meaning"), rows)
    for what in _UNKNOWN:
        bits = getattr(before, what) ^ getattr(after, what)
        if bits:
            click.echo(f"{bold(f'differ, but {_UNKNOWN[what]}:')} {bits:#x} ({_numbers(bits)})")
    if before.value == after.value:
        click.echo("No bit differs.")
    _print_assumed(after)


def _change(one: FieldValue, other: FieldValue) -> str:
    """Return in words how a field has changed."""
    field = one.field
    if field.is_flag and not field.values:
        return field.about if other.number else f"no longer: {field.about}" if field.about else ""
    if not (one.words or other.words):
        return field.about
    changed = " → ".join(it.words or it.shown for it in (one, other))
    return f"{changed} ({field.about})" if field.about else changed
