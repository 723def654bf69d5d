# SPDX-License-Identifier: Apache-2.0
"""
Observing
---------

Which accesses a plan takes from KVM only to see them. KVM then answers after all, but it can only
be asked on behalf of the host, and a guest must not notice. So an access is observed if KVM does
the same for the host, and left with KVM if it does not. Nothing is lost where KVM would refuse an
access: it hands those over anyway.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from kvmsr.msr import catalog
from kvmsr.msr.as_host import as_host
from kvmsr.policy.access import Op
from kvmsr.policy.actions import Plain
from kvmsr.policy.plan.facts import MAX_RANGE_MSRS
from kvmsr.policy.policy import Policy
from kvmsr.policy.selector import Ranges, merge
from kvmsr.text import counted

__all__ = (
    "NO_ROOM", "NotObserved", "Span", "by_reason", "clusters", "differs", "not_observed_lines",
    "spans",
)  # fmt: skip

NO_ROOM: Final = "there is no room for it in KVM's filter"
_UNKNOWN: Final = "what this KVM does for the host is not known"
_BY_CPU: Final = "a value that the CPU itself refuses would go to defaults.invalid, or to a rule"
_SAID: Final = 6


class NotObserved(NamedTuple):
    """
    MSRs that were to be observed and are left with KVM, for one reason.

    :ivar op: the direction.
    :ivar msrs: the MSRs, as ranges.
    :ivar why: what would be different for the guest.
    """

    op: Op
    msrs: Ranges
    why: str

    def __str__(self) -> str:
        return f"{self.op}s of {', '.join(_span_text(*span) for span in self.msrs)}: {self.why}"

    def as_dict(self) -> dict[str, Any]:
        """Return it in its JSON form."""
        msrs = [f"{a:#x}" if a == b else f"{a:#x}-{b:#x}" for a, b in self.msrs]
        return {"op": str(self.op), "msrs": msrs, "why": self.why}


class Span(NamedTuple):
    """
    MSRs that KVM may handle in one direction, and that a policy wants to observe.

    :ivar first: the first MSR.
    :ivar last: the last MSR.
    :ivar why: why they are left with KVM; "" if they are taken from it.
    """

    first: int
    last: int
    why: str


def differs(op: Op, first: int, last: int) -> str:
    """Return what is different if KVM is asked as the host about *first* to *last*, or ""."""
    found = [
        row.reads if op is Op.READ else row.writes
        for row in as_host() if row.first <= last and first <= row.last
    ]  # fmt: skip
    return "; ".join(dict.fromkeys(filter(None, found))) if found else _UNKNOWN


def spans(policy: Policy, op: Op, known: Sequence[tuple[int, int]]) -> list[Span]:
    """
    Return what *policy* wants to observe of the MSRs that KVM may handle for *op*.

    :param known: those MSRs, as ranges in ascending order.
    """
    found: list[Span] = []
    for first, last in _common(policy.observe, known):
        for row in as_host():
            if last < row.first or first > row.last:
                continue
            if first < row.first:
                found.append(Span(first, row.first - 1, _UNKNOWN))
            end = min(last, row.last)
            different = row.reads if op is Op.READ else row.writes
            if different == "" and row.by_cpu and op is Op.WRITE:
                different = _by_cpu(policy, row.first, end)
            found.append(
                Span(max(first, row.first), end, _UNKNOWN if different is None else different)
            )
            first = end + 1
        if first <= last:
            found.append(Span(first, last, _UNKNOWN))
    return found


def _by_cpu(policy: Policy, first: int, last: int) -> str:
    """Return why writes that the CPU may refuse by itself are not observed, or ""."""
    waits = any(
        rule.when is not None and rule.when.reason is not None and rule.write is not None
        for rule in policy.rules
        if any(a <= last and first <= b for a, b in rule.msrs)
    )
    return _BY_CPU if waits or policy.defaults.invalid is not Plain.FAULT else ""


def _common(one: Ranges, other: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what two lists of ranges have in common; both are in ascending order."""
    for first, last in other:
        for a, b in one:
            if a <= last and first <= b:
                yield max(a, first), min(b, last)


def clusters(found: Sequence[Span]) -> list[tuple[int, int]]:
    """Return ranges of MSRs, each no longer than one of the filter's, that hold *found*."""
    made: list[tuple[int, int]] = []
    for first, last, why in sorted(found):
        if why:
            continue
        if made and last - made[-1][0] < MAX_RANGE_MSRS:
            made[-1] = made[-1][0], max(made[-1][1], last)
        else:
            made.append((first, last))
    return made


def not_observed_lines(left: Sequence[NotObserved]) -> list[str]:
    """Return lines for people about what is left with KVM; a few, however much it is."""
    if len(left) <= _SAID:
        return [f"not observed: {one}" for one in left]
    counts = [
        counted(sum(b - a + 1 for one in left if one.op is op for a, b in one.msrs), "MSR")
        for op in Op
    ]  # fmt: skip
    return [
        f"not observed, as the guest would notice: reads of {counts[0]} and writes of {counts[1]}"
        " that KVM answers itself; the trace and --json list them with the reasons"
    ]


def by_reason(left: Iterable[tuple[Op, int, int, str]]) -> tuple[NotObserved, ...]:
    """Return what is left with KVM, by direction and reason, in the order of the MSRs."""
    found: dict[tuple[Op, str], list[tuple[int, int]]] = {}
    for op, first, last, why in left:
        found.setdefault((op, why), []).append((first, last))
    return tuple(NotObserved(op, merge(msrs), why) for (op, why), msrs in found.items())


def _span_text(first: int, last: int) -> str:
    if first != last:
        return f"{first:#x}-{last:#x}"
    name = catalog().name(first)
    return f"{first:#x}{f' ({name})' if name else ''}"
