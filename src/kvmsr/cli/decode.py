# SPDX-License-Identifier: Apache-2.0
"""
kvmsr decode
------------

Decodes values of an MSR into their fields.
"""

from typing import Any

import click

from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import WITH, MsrIndex, Number
from kvmsr.errors import FieldError
from kvmsr.msr import Decoded, catalog, decode, differences

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr decode IA32_MISC_ENABLE 0x850089
  kvmsr decode IA32_MISC_ENABLE 0x850089 0x850088
  kvmsr decode MSR_PKG_ENERGY_STATUS 0x1d0f3 --with MSR_RAPL_POWER_UNIT=0xa1003
"""


@click.command(epilog=_EXAMPLES)
@click.argument("index", type=MsrIndex(), metavar="INDEX|NAME")
@click.argument("value", type=Number(), metavar="VALUE")
@click.argument("other", type=Number(), metavar="[VALUE]", required=False)
@WITH
@click.option("--all", "every", is_flag=True, help="Give each field that is 0 a line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    index: int,
    value: int,
    other: int | None,
    others: tuple[tuple[str, int], ...],
    every: bool,
    as_json: bool,
) -> int:
    """
    Decode an MSR's value into its fields.

    Prints each field with its meaning, and bits that are set and belong to no field. With two
    values it prints what differs between them.
    """
    entry = catalog().get(index)
    if entry is None:
        where = catalog().neighbourhood(index)
        raise FieldError(f"the catalog has no fields for {index:#x} ({where})")
    decoded = decode(entry, value, dict(others))
    after = None if other is None else decode(entry, other, dict(others))
    if as_json:
        print_json(decoded.as_dict() if after is None else _difference(decoded, after))
        return 0
    from kvmsr.cli._decoded import print_decoded, print_difference

    if after is None:
        print_decoded(decoded, every=every)
    else:
        print_difference(decoded, after, differences(decoded, after))
    return 0


def _difference(before: Decoded, after: Decoded) -> dict[str, Any]:
    """Return what differs between two values, as JSON has it."""
    bits = before.as_dict(), after.as_dict()
    keys = ("name", "bits")
    fields = [(one.as_dict(), other.as_dict()) for one, other in differences(before, after)]
    return {
        "index": bits[0]["index"],
        "name": bits[0]["name"],
        **{key: {"before": bits[0][key], "after": bits[1][key]} for key in ("value", "summary")},
        "fields": [
            {key: one[key] for key in keys}
            | {
                when: {key: it[key] for key in it if key not in keys}
                for when, it in (("before", one), ("after", other))
            }
            for one, other in fields
        ],
        "reserved": f"{before.reserved ^ after.reserved:#x}",
        "unknown": f"{before.unknown ^ after.unknown:#x}",
    }
