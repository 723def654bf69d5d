# SPDX-License-Identifier: Apache-2.0
"""
kvmsr encode
------------

Encodes a value of an MSR from its fields.
"""

import click

from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import WITH, MsrIndex, Number
from kvmsr.errors import FieldError
from kvmsr.msr import catalog, encode_with_notes

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr encode IA32_MTRR_DEF_TYPE type=WB enable=true
  kvmsr encode IA32_APIC_BASE base=0xfee00000 enable=yes
  kvmsr encode MSR_PKG_POWER_LIMIT power1=65W window1=28s enable1=on
"""


@click.command(epilog=_EXAMPLES)
@click.argument("index", type=MsrIndex(), metavar="INDEX|NAME")
@click.argument("fields", nargs=-1, metavar="FIELD=VALUE…")
@click.option(
    "--from", "start", type=Number(), default=0, help="The value to start from; by default 0."
)
@WITH
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    index: int,
    fields: tuple[str, ...],
    start: int,
    others: tuple[tuple[str, int], ...],
    as_json: bool,
) -> int:
    """
    Encode an MSR's value from its fields.

    A field's VALUE is a number, true or false, a name, a quantity such as 15W, 85C or 3.2GHz, or a
    whole address: what decode shows for it.
    """
    entry = catalog().get(index)
    if entry is None:
        where = catalog().neighbourhood(index)
        raise FieldError(f"the catalog has no fields for {index:#x} ({where})")
    wanted: dict[str, int | str] = {}
    for text in fields:
        name, equals, number = text.partition("=")
        if not equals:
            raise FieldError(f"{text!r} does not set a field: write {name}=VALUE")
        wanted[name] = number
    value, notes = encode_with_notes(entry, wanted, start, dict(others))
    if as_json:
        encoded = {"index": f"{entry.index:#x}", "name": entry.name, "value": f"{value:#x}"}
        print_json(encoded | ({"notes": list(notes)} if notes else {}))
    else:
        click.echo(f"{value:#x}")
        for note in notes:
            echo(f"note: {note}", err=True)
    return 0
