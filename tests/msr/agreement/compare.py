# SPDX-License-Identifier: Apache-2.0
"""
Agreement
---------

Compare what others' headers say about MSRs with the catalog, for the CPUs that a header is about.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kvmsr.msr import Cpu, Msr, MsrField, catalog
from tests.msr.agreement.headers import Claim, Header, Range

__all__ = ("FIELD_RESULTS", "Agreement", "Difference", "compare", "compare_fields")

FIELD_RESULTS = ("identical", "granularity", "unknown", "different")
"""
How a field of a header compares: the same bits; one side divides what is one field for the other,
or knows fewer of its bits; the catalog knows none of its bits; the two overlap in another way.
"""


class Difference(NamedTuple):
    """What a header and the catalog say differently; *aspect* is name, scope, access or a field."""

    header: str
    msr: str
    aspect: str
    ours: str
    theirs: str


@dataclass
class Agreement:
    """How a header agrees with the catalog: counts by aspect and result, and what differs."""

    header: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    def add(self, aspect: str, result: str, difference: Difference | None = None) -> None:
        """Count a result, and keep how it differs."""
        self.counts.setdefault(aspect, Counter())[result] += 1
        if difference is not None:
            self.differences.append(difference)


def compare(header: Header) -> Agreement:
    """Compare all that *header* says with the catalog. A layout that a bank shares counts once."""
    done = Agreement(header.name)
    seen: set[tuple[object, ...]] = set()
    for claim in header.claims:
        found = _meanings(claim.index, header)
        if not found:
            missing = Difference(header.name, f"{claim.index:#x}", "name", "", claim.names[0])
            done.add("name", "unknown", missing)
            continue
        _compare_name(done, claim)
        _compare_word(done, found, claim, "scope")
        _compare_word(done, found, claim, "access")
        best = min(found, key=lambda msr: _badness(msr, claim))
        layout = (tuple((one.name, one.mask) for one in best.fields), tuple(claim.fields))
        if claim.fields and layout not in seen:
            seen.add(layout)
            _compare_layout(done, best, claim)
    return done


def compare_fields(
    theirs: Iterable[Range], ours: Iterable[MsrField]
) -> Iterator[tuple[str, Range, str]]:
    """Yield, for each of *theirs*, one of FIELD_RESULTS, itself, and the bits of *ours* there."""
    for wanted in theirs:
        mask = (2 << wanted.high) - (1 << wanted.low)
        there = [one for one in ours if one.mask & mask]
        bits = ", ".join(f"{one.name} {one.span}" for one in there)
        if not there:
            yield "unknown", wanted, bits
        elif [one.mask for one in there] == [mask]:
            yield "identical", wanted, bits
        elif all(one.mask & ~mask == 0 for one in there) or mask & ~there[0].mask == 0:
            yield "granularity", wanted, bits
        else:
            yield "different", wanted, bits


def _meanings(index: int, header: Header) -> list[Msr]:
    """Return the meanings on the CPUs of *header*, which lists what only some of them have."""
    found = [msr for msr in catalog().meanings(index) if "intel" in msr.vendors]
    if not header.family:
        return found
    cpus = (Cpu("intel", header.family, model) for model in header.models or range(16))
    there = [catalog().get(index, cpu) for cpu in cpus if cpu.name]
    return [msr for msr in found if msr in there]


def _badness(msr: Msr, claim: Claim) -> list[int]:
    results = Counter(result for result, *_ in compare_fields(claim.fields, msr.fields))
    return [results[result] for result in reversed(FIELD_RESULTS)]


def _compare_name(done: Agreement, claim: Claim) -> None:
    known = {name: catalog().lookup(name).index for name in claim.names if name.lower() in _names()}
    if claim.index in known.values():
        done.add("name", "identical")
    elif not known:
        done.add("name", "unknown")
    else:
        name, index = next(iter(known.items()))
        other = Difference(done.header, name, "name", f"{index:#x}", f"{claim.index:#x}")
        done.add("name", "different", other)


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(catalog().names())


def _compare_word(done: Agreement, found: list[Msr], claim: Claim, aspect: str) -> None:
    theirs, ours = getattr(claim, aspect), {getattr(msr, aspect) for msr in found} - {""}
    if theirs and theirs in ours:
        done.add(aspect, "identical")
    elif theirs and ours:
        said = "/".join(sorted(ours))
        difference = Difference(done.header, found[0].name, aspect, said, theirs)
        done.add(aspect, "different", difference)


def _compare_layout(done: Agreement, msr: Msr, claim: Claim) -> None:
    if not msr.fields:
        difference = Difference(done.header, msr.name, "fields", "none", str(len(claim.fields)))
        for _ in claim.fields:
            done.add("fields", "unknown")
        done.differences.append(difference)
        return
    for result, wanted, bits in compare_fields(claim.fields, msr.fields):
        span = f"{wanted.high}:{wanted.low}" if wanted.high > wanted.low else f"{wanted.low}"
        bad = result in ("unknown", "different")
        theirs = f"{wanted.name} {span}"
        done.add(
            "fields", result, Difference(done.header, msr.name, span, bits, theirs) if bad else None
        )
