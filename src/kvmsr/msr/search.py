# SPDX-License-Identifier: Apache-2.0
"""
Searching the catalog
---------------------

Finds MSRs by words, best match first.
"""

import functools
from typing import Final

from kvmsr.errors import UsageError
from kvmsr.msr.catalog import catalog
from kvmsr.msr.cpu import Cpu, CpuSet, cpu_sets
from kvmsr.msr.entry import Msr

__all__ = ("search",)

_NAME, _PART, _IN_NAME, _ALIAS, _ABOUT, _FIELD, _CPU, _NOWHERE = range(8)
_PREFIXES: Final = frozenset(("ia32", "msr", "amd64", "amd", "hv", "x64", "kvm"))


def search(words: str, cpu: Cpu | None = None) -> list[Msr]:
    """
    Return the MSRs that all of *words* say something of, best match first.

    A word may be a name or part of one, part of an alias, of the description, or of a field's name
    or description, or the code name of a CPU for which the entry was made. That is also the order.

    :param cpu: the CPU on which the MSR is; by default any.
    """
    wanted = words.lower().split()
    found = []
    for msr in catalog():
        ranks = [_rank(word, msr) for word in wanted]
        if _NOWHERE not in ranks and (cpu is None or msr.holds_on(cpu)):
            found.append((sum(ranks), msr.index, msr))
    return [msr for *_, msr in sorted(found, key=lambda one: one[:2])]


def _rank(word: str, msr: Msr) -> int:
    name = msr.name.lower()
    parts = name.split("_")
    if word in (name, "_".join(part for part in parts if part not in _PREFIXES)):
        return _NAME
    if word in parts:
        return _PART
    if word in name:
        return _IN_NAME
    if any(word in alias.lower() for alias in msr.aliases):
        return _ALIAS
    if word in msr.about.lower():
        return _ABOUT
    if any(word in field.name.lower() or word in field.about.lower() for field in msr.fields):
        return _FIELD
    meant = _cpus_called(word) if msr.cpus else ()
    if any(one.meets(other) for one in meant for spec in msr.cpus for other in cpu_sets(spec)):
        return _CPU
    return _NOWHERE


@functools.cache
def _cpus_called(word: str) -> tuple[CpuSet, ...]:
    try:
        return cpu_sets(word)
    except UsageError:
        return ()
