# SPDX-License-Identifier: Apache-2.0
"""
Recording a run
---------------

A thread takes the accesses from where vCPUs put them, the rings in the shared memory or, if Python
answers them, :class:`PythonEvents`, and writes them to the trace file.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvmsr._version import __version__
from kvmsr.dispatch import Outcome, Verdict
from kvmsr.errors import TraceError
from kvmsr.kvm import Vcpu
from kvmsr.kvm.cpuid import CpuidEntry
from kvmsr.kvm.kernel_module import vendor_module
from kvmsr.msr import catalog
from kvmsr.native.events import LogEvent, Rings
from kvmsr.native.table import Names
from kvmsr.policy import Access, Op, Policy, Reason, Where
from kvmsr.policy.plan import Plan
from kvmsr.session.guests import Shared
from kvmsr.text import counted, error_text
from kvmsr.trace import MAX_ROWS, Grade, TraceOptions
from kvmsr.trace.file import EVENT, LATENCY, OPS, OUTCOMES, REASONS, Head, TraceWriter, Unseen
from kvmsr.trace.file.columns import CPL, MAX_CALLERS, RIP, VALUE, event_type

__all__ = ("PythonEvents", "Recording", "texts_of")

_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.1
_SECOND: Final = 1.0
_MANY: Final = 1 << 14
_MOST_LOGGED: Final = 2000
_MOST_WAITING: Final = 1 << 18
_LONGEST_TEXT: Final = 1 << 20

_OPS: Final = {op: OPS.index(op) for op in Op}
_REASONS: Final = {reason: REASONS.index(reason) for reason in Reason}
_OUTCOMES: Final = {Verdict(word): number for number, word in enumerate(OUTCOMES)}
_NEW, _CHANGED, _REPEATED = 0, 1, 2
_NOWHERE: Final = Where(0)
_LEAST: Final = {Grade.COUNT: -1, Grade.ONCE: _NEW, Grade.CHANGE: _CHANGED, Grade.ALL: _REPEATED}

_Array = np.ndarray[Any, Any]
_Key = tuple[int, int, int, int, int]


class PythonEvents:
    """
    The accesses of one vCPU that Python answers, on their way to the trace.

    The vCPU's thread adds them, and the recording's thread takes them.

    :ivar closed: whether nobody takes them any more.
    """

    def __init__(
        self, options: TraceOptions, names: Names, vm: int, vcpu: Vcpu, guest_ns: Callable[[], int]
    ) -> None:
        self._least = _LEAST[options.grade]
        self._options, self._names, self._guest_ns = options, names, guest_ns
        self._vm, self._vcpu = vm, vcpu
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._kinds: dict[_Key, list[int]] = {}  # the number of accesses not traced; the last value
        self._reported: dict[_Key, int] = {}
        self.closed = False

    def add(self, access: Access, outcome: Outcome, began_ns: int) -> None:
        """Add an access that was answered; *began_ns* is when KVM handed it over."""
        op, verdict = _OPS[access.op], _OUTCOMES[outcome.verdict]
        rule, reason = self._names.number(outcome.rule), _REASONS[access.reason]
        value = outcome.value if outcome.verdict is Verdict.VALUE else access.value
        key = (access.index, op, reason, rule, verdict)
        kind = self._kinds.get(key)
        if kind is None:
            kind, news = [0, value], _NEW
            if len(self._kinds) < MAX_ROWS:  # the guest chooses the MSRs
                self._kinds[key] = kind
        else:
            news = _REPEATED if kind[1] == value else _CHANGED
            kind[1] = value
        if news > self._least or not self._has_room():
            kind[0] += 1
            return
        now = time.monotonic_ns()
        has = LATENCY | (0 if op == _OPS[Op.READ] and verdict != 0 else VALUE)
        where = access.where
        if where is not None:
            has |= RIP | CPL
        took = min(now - began_ns, 0xFFFF_FFFF)
        self._waiting.append((now, self._guest_ns(), value, took, key, has, where))

    def _has_room(self) -> bool:
        while len(self._waiting) >= _MOST_WAITING:
            if not self._options.lossless or self.closed:
                return False
            time.sleep(_PAUSE)
        return True

    def take(self, pid: int) -> _Array:
        """Return the rows that are waiting."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        rows = np.zeros(len(taken), event_type(self._options.callers))
        most = self._options.callers
        for place, (now, guest, value, took, key, has, where) in enumerate(taken):
            index, op, reason, rule, verdict = key
            rip, cpl, callers, guesses = where or _NOWHERE
            row: tuple[Any, ...] = (
                now, guest, value, rip, index, took, 1, pid, rule, self._vm, self._vcpu.id, op,
                reason, verdict, cpl, has,
            )  # fmt: skip
            if most:
                given = (*callers, *[0] * MAX_CALLERS)[:MAX_CALLERS]
                row = (*row, given, len(callers), guesses)
            rows[place] = row
        return rows

    def counted(self, now: int, pid: int) -> _Array:
        """Return rows for the accesses that were counted since the last call."""
        rows = []
        for key, (count, value) in list(self._kinds.items()):
            fresh = count - self._reported.get(key, 0)
            if fresh:
                self._reported[key] = count
                index, op, reason, rule, verdict = key
                has = 0 if op == _OPS[Op.READ] and verdict != 0 else VALUE
                rows.append(
                    (now, self._guest_ns(), value if has else 0, 0, index, 0, fresh, pid, rule,
                     self._vm, self._vcpu.id, op, reason, verdict, 0, has)
                )  # fmt: skip
        found = np.zeros(len(rows), event_type(self._options.callers))
        found[list(EVENT.names or ())] = np.array(rows, EVENT)
        return found


class Recording:
    """
    The recording of one run.

    :param options: what to record, and where.
    :param shared: what C works on; None if Python answers accesses.
    :ivar notes: lines that the user should read.
    """

    def __init__(self, options: TraceOptions, shared: Shared | None) -> None:
        self.notes: list[str] = []
        self.options = options
        self._shared, self._pid = shared, os.getpid()
        self._names = Names() if shared is None else shared.names
        self._sources: list[PythonEvents] = []
        self._waiting: list[_Array] = []
        self._only_counted = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def add_vcpu(self, vm: int, vcpu: Vcpu, guest_ns: Callable[[], int]) -> PythonEvents:
        """
        Return where to put the accesses of a vCPU that Python answers.

        :param guest_ns: returns the time on the VM's clock, which counters follow.
        """
        made = PythonEvents(self.options, self._names, vm, vcpu, guest_ns)
        self._sources.append(made)
        return made

    def begin(
        self,
        plan: Plan,
        backend: str,
        command: str,
        image: str,
        cpuid: Iterable[CpuidEntry],
        log: LogEvent | None,
    ) -> None:
        """Begin to record a run; see :meth:`Session.begin_recording`."""
        system, policy = os.uname(), plan.policy
        host = {"kernel": system.release, "machine": system.machine}
        if backend == "kvm":
            host["kvm"] = vendor_module()
        head = Head(
            kvmsr=__version__,
            command=command,
            image=image,
            backend=backend,
            host=host,
            policy=policy.source or policy.name,
            policy_text=texts_of(policy),
            not_observed=[Unseen(**one.as_dict()) for one in plan.not_observed],
            grade=self.options.grade,
            began_ns=time.time_ns(),
            cpuid=[(e.function, e.index, e.eax, e.ebx, e.ecx, e.edx) for e in cpuid],
            cpu="" if cpuid else str(catalog().cpu or ""),
        )
        options = self.options
        self._writer = TraceWriter(options.path, head, rip=options.where, callers=options.callers)
        self._to_epoch = time.time_ns() - time.monotonic_ns()
        self._rings = None
        if self._shared is not None:
            callers = self.options.callers
            self._rings = Rings(self._shared.block, self._shared.names, log, callers=callers)
            self._set(on=True)
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def _close(self) -> None:
        """Let no vCPU wait for room any more."""
        for one in self._sources:
            one.closed = True
        if self._shared is not None:
            self._set(on=False)

    def _set(self, *, on: bool) -> None:
        assert self._shared is not None
        tables = self._shared.block.tables
        tables.lossless = on and self.options.lossless
        tables.trace_rip = on and self.options.where
        tables.callers = self.options.callers
        tables.reads |= self.options.callers > 0
        tables.trace = list(Grade).index(self.options.grade) if on else 0

    def _run(self) -> None:
        try:
            self._record()
        except Exception as error:  # no vCPU may wait for this thread for ever
            self.notes.append(f"the trace ends early: {error_text(error)}")
        finally:
            self._close()

    def _record(self) -> None:
        pause, written, looked = _PAUSE, time.monotonic(), time.monotonic()
        while not self._over.wait(pause):
            taken = self._take()
            pause = _PAUSE if taken else min(pause * 2, _LONGEST_PAUSE)
            now = time.monotonic()
            if now - looked > _SECOND:
                looked = now
                self._count(last=False)
            if now - written > _SECOND / 2 or sum(map(len, self._waiting)) > _MANY:
                written = now
                if not self._write():
                    return
        self._take()
        self._count(last=True)
        self._write()

    def _take(self) -> int:
        """Take what vCPUs have put down, and return the number of rows."""
        before = len(self._waiting)
        if self._rings is not None:
            self._rings.logs = _MOST_LOGGED
            self._waiting.extend(self._rings.take())
        self._waiting += [rows for one in self._sources if len(rows := one.take(self._pid))]
        return sum(map(len, self._waiting[before:]))

    def _count(self, *, last: bool) -> None:
        now = time.monotonic_ns()
        found = [one.counted(now, self._pid) for one in self._sources]
        if self._rings is not None:
            found += self._rings.counted(now, last=last)
        self._only_counted += sum(int(rows["count"].sum()) for rows in found)
        self._waiting += [rows for rows in found if len(rows)]

    def _write(self) -> bool:
        """Write what waits. Return False if the trace ends here."""
        if not self._waiting:
            return True
        rows = np.concatenate(self._waiting)
        self._waiting = []
        rows = rows[np.argsort(rows["time_ns"], kind="stable")]
        rows["time_ns"] += np.uint64(self._to_epoch)
        try:
            self._writer.write(rows, self._names.known())
        except TraceError as error:
            self.notes.append(f"{error}; it ends with access {self._writer.rows:,}")
            return False
        return True

    @property
    def dropped(self) -> int:
        """Return the number of accesses that should be in the trace, but are only counted."""
        return self._only_counted if self.options.grade is Grade.ALL else 0

    def end(self) -> None:
        """Write the rest, and close the trace. Call it when no vCPU runs any more, or again."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        self._writer.close()
        if self.dropped:
            accesses = counted(self.dropped, "access", "accesses")
            self.notes.append(
                f"{accesses} came too fast for the trace, which only counts them: --lossless waits"
            )


def texts_of(policy: Policy) -> dict[str, str]:
    """Return the text of the files that a policy was read from, as they are now."""
    texts = {}
    for name in policy.files:
        with suppress(OSError):
            texts[name] = Path(name).read_bytes()[:_LONGEST_TEXT].decode(errors="replace")
    return texts
