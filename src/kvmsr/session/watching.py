# SPDX-License-Identifier: Apache-2.0
"""
Watching a run
--------------

What whoever looks at a run again and again wants to know: the rows that have changed since it last
looked and, of an MSR that it looks at closely, the last accesses. Accesses are kept only while
somebody asks for them.
"""

import threading
import time
from typing import Any, Final

from kvmsr.native.recent import native_recent, watch_native
from kvmsr.policy import Op
from kvmsr.policy.live import given
from kvmsr.session.session import Session
from kvmsr.trace import MAX_RECENT, Recent, RecentAccesses, Row, Summary

__all__ = ("MAX_WATCHED", "Watching")

MAX_WATCHED: Final = 4
"""The number of MSRs whose accesses are kept at a time."""

_LEASE: Final = 5.0
"""Seconds for which an MSR is watched after it was last asked for."""

_Key = tuple[object, ...]


class Watching:
    """
    Answers those who watch a run. Any thread may call it.

    :param session: the policy at work.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._serial = 0
        self._seen: dict[_Key, tuple[int, int]] = {}  # a row's count, and when it got there
        self._leases: dict[int, float] = {}
        self._kept = [(one, RecentAccesses(vm)) for vm, one in session.python_vcpus]
        self._timer: threading.Timer | None = None
        self._asking = threading.Lock()

    def rows(self, summary: Summary, since: int) -> tuple[int, list[Row]]:
        """
        Return the rows that have changed after the answer with serial *since*; 0 is before any.

        The other number is the serial of this answer.
        """
        with self._asking:
            self._serial += 1
            changed: list[Row] = []
            seen: dict[_Key, tuple[int, int]] = {}
            for row in summary:
                key = (row.index, row.op, row.reason, row.rule)
                count, serial = self._seen.get(key, (-1, 0))
                if row.count != count:
                    serial = self._serial
                seen[key] = row.count, serial
                if serial > since:
                    changed.append(row)
            self._seen = seen
            return self._serial, changed

    def msr(self, index: int) -> dict[str, Any]:
        """
        Return what the policy says about an MSR, and the last accesses to it.

        They are kept from now on, for 5 seconds after the last call.
        """
        plan = self._session.plan
        said: dict[str, Any] = {"index": index, "given": given(plan.policy, index)}
        for op, table in ((Op.READ, plan.reads), (Op.WRITE, plan.writes)):
            rules = table.find(index).rules
            said[str(op)] = [
                {
                    "rule": rule.where,
                    "action": str(rule.action(op)),
                    "when": bool(rule.when),
                }
                for rule in rules
            ]
        with self._asking:
            self._watch(index)
        recent = self._recent(index)
        recent.sort(key=lambda one: one.time)
        said["recent"] = [one.as_dict() for one in recent[-MAX_RECENT:]]
        return said

    def _recent(self, index: int) -> list[Recent]:
        found = [one for _, kept in self._kept for one in kept.of(index)]
        if self._session.shared is not None:
            noted = native_recent(*self._session.shared)
            found += [one for one in noted if one.index == index]
        return found

    def _watch(self, index: int) -> None:
        self._leases.pop(index, None)
        self._leases[index] = time.monotonic() + _LEASE
        while len(self._leases) > MAX_WATCHED:
            del self._leases[next(iter(self._leases))]
        self._set()
        if self._timer is None:
            self._wait(_LEASE)

    def _set(self) -> None:
        """Have the accesses to all MSRs with a lease kept."""
        wanted = frozenset(self._leases)
        for vcpu, kept in self._kept:
            kept.want(wanted)
            vcpu.give_also_to(kept if wanted else None)
        if self._session.shared is not None:
            watch_native(self._session.shared.block, wanted)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._asking:
            now = time.monotonic()
            self._leases = {n: end for n, end in self._leases.items() if end > now}
            self._set()
            self._timer = None
            if self._leases:
                self._wait(max(self._leases.values()) - now)
