# SPDX-License-Identifier: Apache-2.0
"""
kvmsr msr
---------

Looks up and searches MSRs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from kvmsr.cli._kvm import about_kvm, kvm_as_dict
from kvmsr.cli._msr_word import MsrWord, MsrWords
from kvmsr.cli._output import print_json
from kvmsr.cli._parameters import CPU
from kvmsr.errors import UsageError
from kvmsr.msr import Cpu, Msr, MsrField, catalog, cpu_names
from kvmsr.msr.cpu import cpu_sets

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr msr 0x1a0
  kvmsr msr feature_control 0x1a0-0x1a7
  kvmsr msr 0x1c9 --cpu sapphire-rapids
  kvmsr msr 'MSR_PKG_*' --cpu intel:06_97 --json
  kvmsr msr --search thermal
  kvmsr msr --cpus
"""


@dataclass(frozen=True, slots=True)
class Found:
    """
    What a user asked for.

    :ivar index: the MSR.
    :ivar meanings: its entries that are to be shown; empty if it has no name, or none there.
    """

    index: int
    meanings: tuple[Msr, ...]


@click.command(epilog=_EXAMPLES)
@click.argument("words", type=MsrWord(), nargs=-1, metavar="[MSR]...")
@CPU
@click.option(
    "--search",
    "wanted",
    metavar="WORDS",
    help="List the MSRs of which names, description, fields or CPUs have all these words, best"
    " match first.",
)
@click.option("--cpus", "listing", is_flag=True, help="List the code names of CPUs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of objects.")
def command(
    words: tuple[MsrWords, ...], cpu: Cpu | None, wanted: str | None, listing: bool, as_json: bool
) -> int:
    """
    Describe MSRs, and what KVM does with them.

    An MSR is a number, a name, a range such as 0x1a0-0x1a7, or a pattern of names such as
    'MSR_PKG_*'. An index that means different MSRs on different CPUs is shown with all its
    meanings, or with --cpu in the one that it has on that CPU.
    """
    if bool(words) + (wanted is not None) + listing != 1:
        raise click.UsageError("give MSRs, --search WORDS, or --cpus")
    if listing:
        _list_cpus(as_json)
    elif wanted is not None:
        _search(wanted, cpu, as_json)
    elif as_json:
        print_json([one for found in _chosen(words, cpu) for one in _as_dicts(found, cpu)])
    else:
        _describe(words, cpu)
    return 0


def _chosen(words: Iterable[MsrWords], cpu: Cpu | None) -> list[Found]:
    """Return what the words stand for, each MSR once."""
    chosen: dict[int, tuple[Msr, ...]] = {}
    for word in words:
        for index in word.indices:
            there = catalog().get(index, cpu) if cpu else None
            meanings = catalog().meanings(index) if cpu is None else (there,) if there else ()
            fitting = tuple(msr for msr in meanings if word.fits(msr))
            if fitting or not word.many:
                known = chosen.get(index, ())
                chosen[index] = (*known, *(msr for msr in fitting if msr not in known))
    return [Found(index, meanings) for index, meanings in chosen.items()]


def _describe(words: Iterable[MsrWords], cpu: Cpu | None) -> None:
    from kvmsr.cli._catalog import print_found, print_msr, print_nameless

    found = _chosen(words, cpu)
    if not found:
        where = f" on {_called(cpu)}" if cpu else ""
        raise UsageError(f"no MSR of {', '.join(word.text for word in words)} has a name{where}")
    named = [msr for one in found for msr in one.meanings]
    if len(named) > 1 and any(word.many for word in words):
        print_found(named)
        named = []
    nameless = [one.index for one in found if not one.meanings]
    blank = False
    for msr in named:
        if blank:
            click.echo()
        print_msr(msr, about_kvm(msr.index, msr))
        blank = True
    for index in nameless:
        print_nameless(index, _elsewhere(index, cpu), about_kvm(index, None))


def _elsewhere(index: int, cpu: Cpu | None) -> str:
    """Return where an MSR has no name, and what there is instead."""
    if cpu is None:
        return f"in the catalog: {catalog().neighbourhood(index)}"
    others = [f"on {', '.join(m.cpus or m.vendors)}: {m.name}" for m in catalog().meanings(index)]
    return f"on {_called(cpu)}; {'; '.join(others or [catalog().neighbourhood(index)])}"


def _called(cpu: Cpu) -> str:
    return cpu.name or str(cpu)


def _as_dicts(found: Found, cpu: Cpu | None) -> list[dict[str, Any]]:
    if found.meanings:
        return [_as_dict(msr) for msr in found.meanings]
    others = catalog().meanings(found.index) if cpu else ()
    nameless = {
        "index": f"{found.index:#x}",
        "name": "",
        "where": catalog().neighbourhood(found.index),
        "elsewhere": [{"name": msr.name, "cpus": _signatures(msr)} for msr in others],
        "kvm": kvm_as_dict(found.index, None),
    }
    return [nameless]


def _as_dict(msr: Msr) -> dict[str, Any]:
    return {
        "index": f"{msr.index:#x}",
        "name": msr.name,
        "aliases": list(msr.aliases),
        "vendors": list(msr.vendors),
        "cpus": _signatures(msr),
        "about": msr.about,
        "scope": msr.scope,
        "access": msr.access,
        "reset": None if msr.reset is None else f"{msr.reset:#x}",
        "category": msr.category,
        "fields": [_field(field) for field in msr.fields],
        "rest": msr.rest,
        "kvm": kvm_as_dict(msr.index, msr),
        "sources": list(msr.sources),
    }


def _field(field: MsrField) -> dict[str, Any]:
    """Return all that is known about a field."""
    given = {name: getattr(field, name) for name in MsrField.__struct_fields__}
    return {**given, "values": {str(number): text for number, text in field.values.items()}}


def _signatures(msr: Msr) -> list[str]:
    """Return the CPUs for which an entry holds, as --cpu and its like read them."""
    if not msr.cpus:
        return [vendor for vendor in msr.vendors if vendor in ("intel", "amd")]
    return [str(one) for spec in msr.cpus for one in cpu_sets(spec)]


def _search(words: str, cpu: Cpu | None, as_json: bool) -> None:
    from kvmsr.msr import search

    found = search(words, cpu)
    if as_json:
        print_json(
            [
                {
                    "index": f"{msr.index:#x}",
                    "name": msr.name,
                    "cpus": _signatures(msr),
                    "about": msr.about,
                }
                for msr in found
            ]
        )
    elif not found:
        where = f" on {_called(cpu)}" if cpu else ""
        click.echo(f"no MSR{where} has {words!r} in its names, description, fields or CPUs")
    else:
        from kvmsr.cli._catalog import print_found

        print_found(found)


def _list_cpus(as_json: bool) -> None:
    names = {name: [str(one) for one in sets] for name, sets in cpu_names().items()}
    if as_json:
        print_json([{"name": name, "cpus": cpus} for name, cpus in names.items()])
    else:
        from kvmsr.cli._columns import print_columns

        rows = [(name, ", ".join(cpus)) for name, cpus in names.items()]
        print_columns(("name", "CPUs"), rows)
