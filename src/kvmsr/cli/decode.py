# SPDX-License-Identifier: Apache-2.0
"""
kvmsr decode
------------

Decodes values of an MSR into their fields.
"""

from typing import Any

import click

from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import CPU, Number
from kvmsr.cli._values import WITH, Meanings, there_is
from kvmsr.msr import Cpu, Decoded, Msr, decode, differences

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr decode IA32_MISC_ENABLE 0x850089
  kvmsr decode IA32_MISC_ENABLE 0x850089 0x850088
  kvmsr decode 0x1ad 0x1c1c1c1c1f1f2020 --cpu skylake-sp
  kvmsr decode MSR_PKG_ENERGY_STATUS 0x1d0f3 --with MSR_RAPL_POWER_UNIT=0xa1003
"""


@click.command(epilog=_EXAMPLES)
@click.argument("meanings", type=Meanings(), metavar="INDEX|NAME")
@click.argument("value", type=Number(), metavar="VALUE")
@click.argument("other", type=Number(), metavar="[VALUE]", required=False)
@CPU
@WITH
@click.option("--all", "every", is_flag=True, help="Give each field that is 0 a line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, one object a meaning.")
def command(
    meanings: tuple[Msr, ...],
    value: int,
    other: int | None,
    cpu: Cpu | None,
    others: tuple[tuple[str, int], ...],
    every: bool,
    as_json: bool,
) -> int:
    """
    Decode an MSR's value into its fields.

    Prints each field with its meaning, and bits that are set and belong to no field. With two
    values it prints what differs between them. An MSR that is different on different CPUs is
    decoded for each of them, single models briefly; or for the one that --cpu names.
    """
    found = there_is(meanings, cpu)
    known = dict(others)
    before = [decode(msr, value, known) for msr in found]
    after = None if other is None else [decode(msr, other, known) for msr in found]
    if as_json:
        pairs = zip(before, after or before, strict=True)
        print_json([_difference(*pair) if after else pair[0].as_dict() for pair in pairs])
    else:
        _print(before, after, every)
    return 0


def _print(before: list[Decoded], after: list[Decoded] | None, every: bool) -> None:
    from kvmsr.cli._decoded import print_decoded, print_difference, print_heading, print_others

    general = [one for one in before if not one.msr.cpus]
    in_full = before if every or after or not general else general
    for number, one in enumerate(in_full):
        if len(before) > 1:
            print_heading(one.msr, first=not number)
        if after:
            print_difference(one, after[number], differences(one, after[number]))
        else:
            print_decoded(one, every=every)
    if len(in_full) < len(before):
        print_others([one for one in before if one not in in_full])


def _difference(before: Decoded, after: Decoded) -> dict[str, Any]:
    """Return what differs between two values, as JSON has it."""
    bits = before.as_dict(), after.as_dict()
    keys = ("name", "bits")
    fields = [(one.as_dict(), other.as_dict()) for one, other in differences(before, after)]
    return {
        "index": bits[0]["index"],
        "name": bits[0]["name"],
        "cpus": bits[0]["cpus"],
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
