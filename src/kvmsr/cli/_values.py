# SPDX-License-Identifier: Apache-2.0
"""
Parameters of decode and encode
-------------------------------

An MSR with its meanings, and the values of others.
"""

from typing import Any, Final, cast

import click
from click.shell_completion import CompletionItem

from kvmsr.cli._parameters import MsrIndex, Number
from kvmsr.errors import FieldError, UsageError
from kvmsr.msr import Cpu, Msr, catalog
from kvmsr.text import shown

__all__ = ("WITH", "Meanings", "cpus_of", "there_is")

_VENDORS: Final = {"intel": "Intel", "amd": "AMD", "kvm": "KVM", "hyperv": "Hyper-V"}


class Meanings(click.ParamType[tuple[Msr, ...]]):
    """An MSR, by number or name: its meanings on different CPUs, those that have the name."""

    name = "MSR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Msr, ...]:
        """Return the meanings; a name that is part of none of them stands for all."""
        if not isinstance(value, str):
            return cast(tuple[Msr, ...], value)
        index = MsrIndex().convert(value, param, ctx)
        found = catalog().meanings(index)
        if not found:
            where = catalog().neighbourhood(index)
            raise FieldError(f"the catalog has no fields for {index:#x} ({where})")
        called = catalog().lookup(value).name if not value[:1].isdigit() else ""
        return tuple(msr for msr in found if called in ("", msr.name, *msr.aliases))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of MSRs."""
        return MsrIndex().shell_complete(ctx, param, incomplete)


def there_is(meanings: tuple[Msr, ...], cpu: Cpu | None) -> tuple[Msr, ...]:
    """
    Return those of an MSR's *meanings* that hold on a CPU: one, or all if the CPU is not known.

    :raises UsageError: if none does.
    """
    if cpu is None:
        return meanings
    index = meanings[0].index
    found = catalog().get(index, cpu)
    if found not in meanings:
        called = f"{cpu} ({cpu.name})" if cpu.name else f"{cpu}"
        names = ", ".join(f"{msr.name} on {cpus_of(msr)}" for msr in meanings)
        other = f", where {index:#x} is {found.name}" if found else ""
        raise UsageError(f"{meanings[0].name} is not known on {called}{other}: there is {names}")
    assert found is not None
    return (found,)


def cpus_of(msr: Msr) -> str:
    """Return the CPUs for which an entry holds, for a message."""
    if msr.cpus:
        return ", ".join(msr.cpus)
    return f"{' and '.join(_VENDORS.get(one, one) for one in msr.vendors)} in general"


class MsrValue(click.ParamType[tuple[str, int]]):
    """The value of an MSR: ``NAME=VALUE``."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return the MSR's name and its value."""
        if not isinstance(value, str):
            return cast(tuple[str, int], value)
        name, equals, number = value.partition("=")
        if not equals:
            raise UsageError(f"--with {shown(value)}: write NAME=VALUE")
        (entry, *_) = Meanings().convert(name, param, ctx)
        return entry.name, Number().convert(number, param, ctx)


WITH: Final = click.option(
    "--with",
    "others",
    type=MsrValue(),
    multiple=True,
    help="The value of another MSR that fields depend on: units in MSR_RAPL_POWER_UNIT, TjMax in"
    " MSR_TEMPERATURE_TARGET, an MTRR's mask. May be repeated.",
)
