# SPDX-License-Identifier: Apache-2.0
"""
kvmsr decode
------------

Decodes a value of an MSR into its fields.
"""

import click

from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import MsrIndex, Number
from kvmsr.errors import FieldError
from kvmsr.msr import Decoded, catalog, decode

__all__ = ("command",)


@click.command(epilog="Example: kvmsr decode IA32_MISC_ENABLE 0x850089")
@click.argument("index", type=MsrIndex(), metavar="INDEX|NAME")
@click.argument("value", type=Number(), metavar="VALUE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(index: int, value: int, as_json: bool) -> int:
    """
    Decode an MSR's value into its fields.

    Prints each field with its meaning, and reserved bits that are set.
    """
    entry = catalog().get(index)
    if entry is None:
        where = catalog().neighbourhood(index)
        raise FieldError(f"the catalog has no fields for {index:#x} ({where})")
    decoded = decode(entry, value)
    if as_json:
        print_json(_as_dict(decoded))
    else:
        from kvmsr.cli._catalog import print_decoded

        print_decoded(decoded)
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
