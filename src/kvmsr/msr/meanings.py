# SPDX-License-Identifier: Apache-2.0
"""
Meanings
--------

The meanings of one index are for different CPUs: what the catalog's source is checked for.
"""

from collections.abc import Iterable

from kvmsr.errors import CatalogError
from kvmsr.msr.cpu import CpuSet, cpu_sets
from kvmsr.msr.entry import Msr

__all__ = ("check_apart", "order")

_VENDORS = ("intel", "amd", "kvm", "hyperv")


def order(msr: Msr) -> tuple[bool, int, int]:
    """
    Sort the meanings of an index: first those of all CPUs of a vendor, Intel's before AMD's, then
    those of more models. Where no CPU is known, the first one is the most likely.
    """
    return bool(msr.cpus), min(map(_VENDORS.index, msr.vendors)), -len(_sets(msr))


def check_apart(msr: Msr, others: Iterable[Msr], where: str) -> None:
    """
    Check that no CPU has two meanings of one index.

    An entry for all CPUs of a vendor stands back behind those for some of them.

    :param others: entries with the index of *msr*.
    :param where: the file that *msr* is from.
    :raises CatalogError: if another entry is for a CPU that *msr* is for, too.
    """
    mine = _sets(msr)
    for other in others:
        both = set(msr.vendors) & set(other.vendors)
        if both and bool(msr.cpus) == bool(other.cpus) and _meet(mine, _sets(other)):
            what = f"{msr.index:#x} is {msr.name} and {other.name}"
            on = f" on {_common(mine, _sets(other))}" if msr.cpus else ""
            raise CatalogError(f"{where}: {what}{on}")


def _sets(msr: Msr) -> list[CpuSet]:
    return [one for spec in msr.cpus or msr.vendors for one in _any(spec)]


def _any(spec: str) -> tuple[CpuSet, ...]:
    return (CpuSet(spec),) if spec in ("kvm", "hyperv") else cpu_sets(spec)


def _meet(some: list[CpuSet], others: list[CpuSet]) -> bool:
    return any(one.meets(other) for one in some for other in others)


def _common(some: list[CpuSet], others: list[CpuSet]) -> CpuSet:
    return next(one for one in some if _meet([one], others))
