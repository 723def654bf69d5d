# SPDX-License-Identifier: Apache-2.0
"""
kvmsr msr
---------

Looks up and searches MSRs.
"""

from typing import Any

import click
import msgspec

from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import MsrIndex
from kvmsr.msr import Msr, catalog, handled

__all__ = ("about_kvm", "command")


_EXAMPLES = """\b
Examples:
  kvmsr msr 0x1a0
  kvmsr msr feature_control
  kvmsr msr --search thermal
"""


@click.command(epilog=_EXAMPLES)
@click.argument("index", required=False, type=MsrIndex(), metavar="[INDEX|NAME]")
@click.option(
    "--search", metavar="WORDS", help="List the MSRs whose descriptions have all these words."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(index: int | None, search: str | None, as_json: bool) -> int:
    """Describe an MSR, and what KVM does with it."""
    if (index is None) == (search is None):
        raise click.UsageError("give an MSR, or --search WORDS")
    if search is not None:
        return _list(catalog().search(search), search, as_json)
    assert index is not None
    entry = catalog().get(index)
    if as_json:
        described = msgspec.to_builtins(entry) if entry else {"index": index, "name": ""}
        described |= {"index": f"{index:#x}", "kvm": about_kvm(index, entry)}
        if entry is None:
            described["where"] = catalog().neighbourhood(index)
        print_json(described)
    else:
        from kvmsr.cli._catalog import print_msr

        print_msr(index, entry, about_kvm(index, entry))
    return 0


def about_kvm(index: int, entry: Msr | None) -> str:
    """Return a description of what KVM does with an access to MSR *index*."""
    found = next((row for row in handled() if row.first <= index <= row.last), None)
    more = f" {entry.kvm}" if entry and entry.kvm else ""
    if found is None:
        return f"No KVM handles it: accesses reach user space as 'unknown'.{more}"
    which = {(True, True): "Reads and writes", (True, False): "Reads", (False, True): "Writes"}
    known = which[found.reads, found.writes]
    other = "" if found.reads and found.writes else " Others reach user space as 'unknown'."
    return (
        f"{known} may be handled by KVM, depending on its version and CPUID; what KVM refuses"
        f" reaches user space as 'invalid'.{other}{more}"
    )


def _list(found: list[Msr], words: str, as_json: bool) -> int:
    if as_json:
        rows: list[dict[str, Any]] = [
            {"index": f"{msr.index:#x}", "name": msr.name, "about": msr.about} for msr in found
        ]
        print_json(rows)
        return 0
    if not found:
        click.echo(f"no MSR has {words!r} in its name, description or fields")
        return 0
    from kvmsr.cli._catalog import print_found

    print_found(found)
    return 0
