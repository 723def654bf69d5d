# SPDX-License-Identifier: Apache-2.0
"""
kvmsr encode
------------

Encodes a value of an MSR from its fields.
"""

import click

from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import MsrIndex, Number
from kvmsr.errors import FieldError
from kvmsr.msr import catalog, encode

__all__ = ("command",)


@click.command(epilog="Example: kvmsr encode IA32_MTRR_DEF_TYPE type=WB enable=1")
@click.argument("index", type=MsrIndex(), metavar="INDEX|NAME")
@click.argument("fields", nargs=-1, metavar="FIELD=VALUE…")
@click.option(
    "--from", "start", type=Number(), default=0, help="The value to start from; by default 0."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(index: int, fields: tuple[str, ...], start: int, as_json: bool) -> int:
    """
    Encode an MSR's value from its fields.

    A field's VALUE is a number, or a name that decode shows for it.
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
    value = encode(entry, wanted, start)
    if as_json:
        encoded = {"index": f"{entry.index:#x}", "name": entry.name, "value": f"{value:#x}"}
        print_json(encoded)
    else:
        click.echo(f"{value:#x}")
    return 0
