# SPDX-License-Identifier: Apache-2.0
"""
From traces to a policy
-----------------------
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kvmsr.errors import PolicyError
from kvmsr.policy import Defaults, Policy
from kvmsr.policy.plan import compile_policy
from kvmsr.symbols import Symbols
from kvmsr.text import counted
from kvmsr.trace.learn.check import misses
from kvmsr.trace.learn.fit import Fit, fit
from kvmsr.trace.learn.seen import History, Material, Stream, read_traces
from kvmsr.trace.learn.text import Entry, described, named, policy_text

__all__ = ("Learned", "learn")


class Learned(NamedTuple):
    """
    A learned policy.

    :ivar text: the policy file.
    :ivar accesses: number of accesses that it was learned from.
    :ivar missed: number of those that it gives another outcome.
    :ivar counters: the MSRs whose values depend on the time.
    :ivar notes: lines that the user should read: what was not used, and where traces disagree.
    """

    text: str
    accesses: int
    missed: int
    counters: frozenset[int]
    notes: list[str]


def learn(paths: Sequence[Path], functions: Symbols | None = None) -> Learned:
    """
    Learn a policy from traces.

    :param functions: the guest's functions, to say who asked.
    :raises TraceError: if one cannot be read, or nothing can be learned from it.
    """
    material = read_traces(paths)
    notes, who = list(material.notes), partial(material.who, functions=functions)
    entries: list[Entry] = []
    accesses = missed = 0
    for index in sorted(material.histories):
        history = material.histories[index]
        streams = history.streams()
        if not streams:
            continue
        found, remarks = _fit(material, history, streams)
        entries.append(Entry(history, streams, found, remarks, who))
        notes += [f"{named(index)}: {line}" for line in remarks]
        if found.missed and not remarks:
            notes.append(f"{named(index)}: {counted(found.missed, 'outcome')} not reproduced")
        accesses += sum(len(stream.seen) for stream in streams)
        missed += found.missed
    notes += _limits(entries)
    groups = _grouped(entries)
    about = [*_about(material, accesses, missed), *_passed(material)]
    text = policy_text(paths[0].stem, about, Defaults(**material.defaults), groups)
    counters = frozenset(entry.index for entry in entries if entry.fit.counts)
    return Learned(text, accesses, missed, counters, notes)


def _limits(entries: Sequence[Entry]) -> list[str]:
    """Return a line if KVM cannot have a policy with these rules."""
    try:
        compile_policy(Policy(rule for entry in entries for rule in entry.fit.rules))
    except PolicyError as error:
        return [f"the policy cannot be used as it is: {error}"]
    return []


def _about(material: Material, accesses: int, missed: int) -> list[str]:
    kept = accesses - missed
    return [
        "Learned from",
        *(f"  {line}" for line in material.heads),
        f"It reproduces {kept:,} of {counted(accesses, 'outcome')}.",
    ]


def _passed(material: Material) -> list[str]:
    """Return a line about the MSRs that are left to KVM."""
    only = [
        history.index
        for history in material.histories.values()
        if history.passed and not any(history.counts.values())
    ]
    return [f"Left to KVM, as in the trace: {', '.join(map(named, sorted(only)))}"] if only else []


def _fit(material: Material, history: History, streams: Sequence[Stream]) -> tuple[Fit, list[str]]:
    """Return the rules for an MSR, and lines about traces that disagree on it."""
    exact = material.exact and not history.left
    index = history.index
    joint = fit(index, streams, exact=exact)
    traces = sorted({stream.trace for stream in streams})
    if not joint.missed or len(traces) < 2:
        return joint, []
    each = {
        trace: fit(index, [one for one in streams if one.trace == trace], exact=exact)
        for trace in traces
    }
    said = {described(found.rules) for found in each.values()}
    if len(said) == 1:
        return joint, []
    lines = [f"{material.paths[trace]}: {described(found.rules)}" for trace, found in each.items()]
    best = joint
    for found in each.values():
        missed = misses(found.rules, streams, found.off)
        if missed < best.missed:
            best = found._replace(missed=missed)
    return best, [f"the traces disagree: {' | '.join(lines)}"]


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the MSRs in groups that share their rules, in order of each group's first."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        counts = any(rule.when is not None and rule.when.counts for rule in entry.fit.rules)
        groups.setdefault(entry.index if counts else entry.key, []).append(entry)
    return list(groups.values())
