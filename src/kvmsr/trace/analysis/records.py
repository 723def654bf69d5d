# SPDX-License-Identifier: Apache-2.0
"""
Rows for people and programs
----------------------------

The rows of a trace one by one, with words for numbers; and which of them are wanted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from kvmsr.msr import catalog
from kvmsr.policy import Where
from kvmsr.symbols import Symbols
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS
from kvmsr.trace.file.columns import CPL, RIP, VALUE

__all__ = ("FIELDS", "Record", "Wanted", "records")

_Array = np.ndarray[Any, Any]


class Record(NamedTuple):
    """
    A row of a trace.

    :ivar time_ns: the host's clock, in nanoseconds since the epoch.
    :ivar guest_ns: the VM's clock, in nanoseconds since its guest began.
    :ivar pid: the process that runs the vCPU.
    :ivar vm: the VM.
    :ivar vcpu: the vCPU.
    :ivar op: ``read`` or ``write``.
    :ivar index: the MSR.
    :ivar name: its name, or "".
    :ivar value: the value read or written; None if there is none.
    :ivar reason: why KVM gave the access up.
    :ivar outcome: ``value``, ``done``, ``fault`` or ``stop``.
    :ivar rule: what decided the access.
    :ivar latency_ns: how long it took in user space; None if the accesses were only counted.
    :ivar count: the number of accesses that the row stands for.
    :ivar rip: where the guest was; None if it was not recorded.
    :ivar cpl: the guest's privilege level; None if it was not recorded.
    :ivar callers: the return addresses of the functions that called the guest's, the nearest first.
    :ivar guesses: a bit for each caller that only looks like one, the lowest for the first.
    """

    time_ns: int
    guest_ns: int
    pid: int
    vm: int
    vcpu: int
    op: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is not needed here
    name: str
    value: int | None
    reason: str
    outcome: str
    rule: str
    latency_ns: int | None
    count: int  # type: ignore[assignment]
    rip: int | None
    cpl: int | None
    callers: tuple[int, ...] = ()
    guesses: int = 0

    def as_dict(self, functions: Symbols | None = None) -> dict[str, Any]:
        """
        Return the row for JSON. MSR, value and addresses are in hexadecimal, as text.

        :param functions: the guest's functions, to add their names.
        """
        found = self._asdict()
        for name in _HEX:
            found[name] = None if found[name] is None else f"{found[name]:#x}"
        del found["guesses"]
        found["callers"] = [
            {"address": f"{one:#x}", "guess": bool(self.guesses >> number & 1)}
            for number, one in enumerate(self.callers)
        ]
        if functions is not None:
            found["symbol"] = "" if self.rip is None else functions.name(self.rip)
            for one, address in zip(found["callers"], self.callers, strict=True):
                one["symbol"] = functions.caller(address)
        return found

    def where(self, functions: Symbols | None = None) -> str:
        """Return where the guest was and who called, in words; "" if that was not recorded."""
        if self.rip is None:
            return ""
        if functions is None:
            return str(Where(self.rip, 0, self.callers, self.guesses))
        return functions.chain(self.rip, self.callers, self.guesses)


FIELDS: Final = tuple(name for name in Record._fields if name != "guesses")
_HEX: Final = ("index", "value", "rip")


def records(events: _Array, rules: Sequence[str]) -> Iterator[Record]:
    """Yield the rows of *events* one by one."""
    name = catalog().name
    for (
        time_ns, guest_ns, value, rip, index, latency_ns, count, pid, rule, vm, vcpu, op, reason,
        outcome, cpl, has, *callers,
    ) in events.tolist():  # fmt: skip
        known, n_callers, guesses = callers or ((), 0, 0)
        yield Record(
            time_ns,
            guest_ns,
            pid,
            vm,
            vcpu,
            OPS[op],
            index,
            name(index),
            value if has & VALUE else None,
            REASONS[reason],
            OUTCOMES[outcome],
            rules[rule],
            latency_ns if has & LATENCY else None,
            count,
            rip if has & RIP else None,
            cpl if has & CPL else None,
            tuple(known[:n_callers]),
            guesses,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    Which rows of a trace are wanted. By default, all are.

    :ivar msrs: first and last MSR of each range, in ascending order, without overlaps.
    :ivar vcpus: numbers of vCPUs.
    :ivar ops: names of directions.
    :ivar outcomes: names of outcomes.
    :ivar since_ns: the earliest time, on the VM's clock.
    """

    msrs: Sequence[tuple[int, int]] = ()
    vcpus: Sequence[int] = ()
    ops: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    since_ns: int = 0

    def of(self, events: _Array) -> _Array:
        """Return those of *events* that are wanted."""
        keep = events["guest_ns"] >= self.since_ns
        if self.msrs:
            firsts, lasts = np.array(self.msrs, np.int64).T
            at = np.searchsorted(firsts, events["index"], side="right") - 1
            keep &= (at >= 0) & (events["index"] <= lasts[at])
        if self.vcpus:
            keep &= np.isin(events["vcpu"], self.vcpus)
        for name, words, known in (("op", self.ops, OPS), ("outcome", self.outcomes, OUTCOMES)):
            if words:
                keep &= np.isin(events[name], [known.index(word) for word in words])
        return events[keep]
