# SPDX-License-Identifier: Apache-2.0
"""
kvmsr encode
------------

A value of an MSR, put together from its fields.
"""

import json

import click

from kvmsr.cli._parameters import MsrIndex, Number
from kvmsr.errors import FieldError
from kvmsr.msr import catalog, encode

__all__ = ("command",)


@click.command(epilog="Example: kvmsr encode IA32_MTRR_DEF_TYPE type=WB enable=1")
@click.argument("index", type=MsrIndex(), metavar="INDEX|NAME")
@click.argument("fields", nargs=-1, metavar="FIELD=VALUE…")
@click.option(
    "--from", "start", type=Number(), default=0, help="The value to change; 0 if not given."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(index: int, fields: tuple[str, ...], start: int, as_json: bool) -> int:
    """Put an MSR's value together: fields by number, or by what they mean."""
    entry = catalog().get(index)
    if entry is None:
        where = catalog().neighbourhood(index)
        raise FieldError(f"{index:#x} has no name here, {where}: nothing is known of its bits")
    wanted: dict[str, int | str] = {}
    for text in fields:
        name, equals, number = text.partition("=")
        if not equals:
            raise FieldError(f"{text!r} sets no field: write {name}=VALUE")
        wanted[name] = number
    value = encode(entry, wanted, start)
    if as_json:
        told = {"index": f"{entry.index:#x}", "name": entry.name, "value": f"{value:#x}"}
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"{value:#x}")
    return 0
