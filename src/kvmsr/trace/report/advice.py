# SPDX-License-Identifier: Apache-2.0
"""
Advice
------

What a report suggests to do next: rules for MSRs that no rule decides yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kvmsr.errors import UnknownMsrError
from kvmsr.msr import catalog
from kvmsr.text import counted
from kvmsr.trace.report.collect import Collected, Kind

__all__ = ("Stub", "notes", "stubs")

_MAX_STUBS: Final = 40


@dataclass(frozen=True, slots=True)
class Stub:
    """
    A rule to begin with.

    :ivar index: the MSR.
    :ivar name: its name, or its number if it has none.
    :ivar why: what happened, in a sentence.
    :ivar toml: the rule.
    """

    index: int
    name: str
    why: str
    toml: str


def stubs(traces: Iterable[Collected]) -> list[Stub]:
    """Return a rule for each MSR that was left to the policy's defaults, those of faults first."""
    by_msr: dict[int, list[Kind]] = {}
    for trace in traces:
        for kind in trace:
            if kind.by_default:
                by_msr.setdefault(kind.index, []).append(kind)

    def urgency(kinds: list[Kind]) -> tuple[bool, int]:
        return not _faults(kinds), -sum(kind.count for kind in kinds)

    return [_stub(kinds) for kinds in sorted(by_msr.values(), key=urgency)[:_MAX_STUBS]]


def _faults(kinds: list[Kind]) -> int:
    return sum(kind.count for kind in kinds if kind.outcome == "fault")


def _stub(kinds: list[Kind]) -> Stub:
    index = kinds[0].index
    msr = catalog().get(index)
    ops = {kind.op for kind in kinds}
    faults, rules = _faults(kinds), " and ".join(sorted({kind.rule for kind in kinds}))
    total = sum(kind.count for kind in kinds)
    what = " and ".join(counted(_of(kinds, op), op) for op in ("read", "write") if op in ops)
    end = "" if not faults else "; all faulted" if faults == total else f"; {faults:,} faulted"
    why = f"{what} left to {rules}{end}."
    lines = [f"# {why}", "[[rule]]", f"msr = {_selector(index)}"]
    if ops == {"read", "write"}:
        lines += ['read = "shadow"', 'write = "shadow"']
        reset = next((k.first for k in kinds if k.op == "read" and k.first), 0)
        reset = reset or (msr.reset if msr and msr.reset else 0)
        lines += [f"reset = {reset:#x}"] if reset else []
    elif "read" in ops:
        seen = next((kind.last for kind in kinds if kind.last is not None), None)
        value = seen if seen is not None else (msr.reset if msr and msr.reset else 0)
        hint = "" if value else "  # a guess: put in what the guest should see"
        lines.append(f"read = {{ value = {value:#x} }}{hint}")
    else:
        lines.append('write = "ignore"')
    return Stub(index, msr.name if msr else f"{index:#x}", why, "\n".join(lines) + "\n")


def _of(kinds: list[Kind], op: str) -> int:
    return sum(kind.count for kind in kinds if kind.op == op)


def _selector(index: int) -> str:
    """Return an MSR as policies name it: by a name, if that leads to this MSR."""
    name = catalog().name(index)
    try:
        if name and catalog().lookup(name).index == index:
            return f'"{name}"'
    except UnknownMsrError:
        pass
    return f"{index:#x}"


def notes(trace: Collected) -> list[str]:
    """Return what to know about a trace before it is trusted, in sentences."""
    grade, found = str(trace.head.grade), []
    if trace.cut:
        found.append(f"The trace is incomplete: {trace.cut}. What it holds up to there is shown.")
    if trace.only_counted:
        many = counted(trace.only_counted, "access was", "accesses were")
        if grade == "all":
            found.append(
                f"{many} dropped, and only counted, because they came faster than they could be"
                " recorded. Record with --lossless to have each."
            )
        else:
            found.append(f"{many} only counted, as the trace has the grade “{grade}”.")
    others = sum(trace.others.values())
    if others:
        least = "" if trace.other_msrs.exact else "at least "
        msrs = counted(len(trace.other_msrs), "other MSR")
        found.append(
            f"The table leaves out {counted(others, 'access', 'accesses')} to {least}{msrs}."
        )
    if trace.sample.stride > 1:
        shown = len(trace.sample.rows())
        found.append(
            f"The timeline shows {shown:,} of {trace.sample.seen:,} recorded rows: one in"
            f" {trace.sample.stride:,}, the first of each MSR, and the first faults. The table and"
            " the histogram count all of them."
        )
    found += [f"{line}. The trace's head has the reasons." for line in trace.head.left_out()]
    if trace.accesses and not trace.has_rip:
        found.append("Who made the accesses was not recorded: --trace-callers 4 records it.")
    return found
