# SPDX-License-Identifier: Apache-2.0
"""
kvmsr encode
------------

Encodes a value of an MSR from its fields.
"""

import click

from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import CPU, Number
from kvmsr.cli._values import WITH, Meanings, cpus_of, there_is
from kvmsr.errors import FieldError
from kvmsr.msr import Cpu, Encoded, Msr, encode_with_notes

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr encode IA32_MTRR_DEF_TYPE type=WB enable=true
  kvmsr encode IA32_APIC_BASE base=0xfee00000 enable=yes
  kvmsr encode MSR_PKG_POWER_LIMIT power1=65W window1=28s enable1=on
"""


@click.command(epilog=_EXAMPLES)
@click.argument("meanings", type=Meanings(), metavar="INDEX|NAME")
@click.argument("fields", nargs=-1, metavar="FIELD=VALUE…")
@click.option(
    "--from", "start", type=Number(), default=0, help="The value to start from; by default 0."
)
@CPU
@WITH
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    meanings: tuple[Msr, ...],
    fields: tuple[str, ...],
    start: int,
    cpu: Cpu | None,
    others: tuple[tuple[str, int], ...],
    as_json: bool,
) -> int:
    """
    Encode an MSR's value from its fields.

    A field's VALUE is a number, true or false, a name, a quantity such as 15W, 85C or 3.2GHz, or a
    whole address: what decode shows for it.
    """
    wanted: dict[str, int | str] = {}
    for text in fields:
        name, equals, number = text.partition("=")
        if not equals:
            raise FieldError(f"{text!r} does not set a field: write {name}=VALUE")
        wanted[name] = number
    entry, encoded = _encoded(there_is(meanings, cpu), wanted, start, dict(others))
    if as_json:
        told = {"index": f"{entry.index:#x}", "name": entry.name, "value": f"{encoded.value:#x}"}
        print_json(told | ({"notes": list(encoded.notes)} if encoded.notes else {}))
    else:
        click.echo(f"{encoded.value:#x}")
        for note in encoded.notes:
            echo(f"note: {note}", err=True)
    return 0


def _encoded(
    meanings: tuple[Msr, ...], wanted: dict[str, int | str], start: int, others: dict[str, int]
) -> tuple[Msr, Encoded]:
    """Return the value, and the meaning that has these fields."""
    made: list[tuple[Msr, Encoded]] = []
    errors: list[FieldError] = []
    for msr in meanings:
        try:
            made.append((msr, encode_with_notes(msr, wanted, start, others)))
        except FieldError as error:
            errors.append(error)
    if not made:
        raise errors[0]
    if len({encoded.value for _, encoded in made}) > 1:
        there = "; ".join(f"{msr.name} on {cpus_of(msr)}" for msr, _ in made)
        raise FieldError(f"{made[0][0].index:#x} has several meanings: {there}. Give --cpu CPU")
    return made[0]
