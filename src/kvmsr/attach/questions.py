# SPDX-License-Identifier: Apache-2.0
"""
Questions of a VMM's vCPUs
--------------------------

If an access needs Python, the VMM's vCPU writes a question into the shared memory and waits until
it is answered. Here, each vCPU has a thread that waits for its questions. Several vCPUs may be
answered at the same time.

A vCPU may give up a question that takes too long, because the controller seems to be dead or
because the VMM has to set the vCPU's state, and may then ask another one. So questions are
numbered, and an answer is put in place only if its own question is still waiting. native/c/upcall.c
explains the protocol.

A guest that has broken into its VMM may write anything there, at any time. So a question is copied
first, and only the copy is checked and used. It must name a rule of the policy that needs Python
and covers the MSR in this direction; nonsense is answered with #GP. And whatever the VMM writes, no
more is done for it in a round than for one that logs as fast as it can.
"""

import threading
from collections.abc import Callable
from typing import Any, Final

from kvmsr.attach.processes import is_unconfined
from kvmsr.dispatch import Verdict
from kvmsr.native import ffi, lib
from kvmsr.native.block import Block, question_reader
from kvmsr.native.words import OPS, REASONS, VERDICTS, made_access, made_where
from kvmsr.policy import Access, Policy, Where
from kvmsr.session import Session
from kvmsr.text import error_text

__all__ = ("Questions",)

_WAIT_MS: Final = 1000
_MOST_LOGGED: Final = 2000
_ROOM: Final = 256
_N_OPS, _N_REASONS, _N_VERDICTS = len(OPS), len(REASONS), len(VERDICTS)
_STOP: Final = VERDICTS[Verdict.STOP]
_CONFINED: Final = (
    "callers are not known: the VMM confines its threads by seccomp, or its state cannot be seen"
)


class Questions:
    """
    Answers the questions of a VMM's vCPUs, and logs the accesses that they report.

    :param session: the policy at work.
    :param block: the shared memory.
    :param stop: called with the access at which the policy stops the run, and with the rule.
    :param interrupt: called if a handler raises KeyboardInterrupt.
    :ivar notes: lines that the user should read.
    :ivar recorded: whether the run is recorded. The recording then takes the events of vCPUs, and
        calls :meth:`log_event`.
    """

    def __init__(
        self,
        session: Session,
        block: Block,
        stop: Callable[[Access, str], None],
        interrupt: Callable[[], None],
    ) -> None:
        self.notes: list[str] = []
        self.recorded = False
        self._session = session
        self._block = block
        self._stop = stop
        self._interrupt = interrupt
        self._vms, self._ids = int(lib.KVMSR_MAX_VMS), int(lib.KVMSR_MAX_ID)
        self._served: set[int] = set()
        self._policy: Policy | None = None
        self._has_questions = False
        self._next_logged = 0
        self._events = ffi.new("struct kvmsr_event[]", _ROOM)
        self._closed = False

    def serve(self) -> None:
        """Start to answer the vCPUs that are new, and log what vCPUs report: so many at most."""
        policy = self._session.plan.policy
        if policy is not self._policy:
            self._policy = policy
            self._has_questions = policy.asks_python or bool(self._block.tables.reads)
        if self._has_questions:
            for number in range(self._block.n_vcpus):
                taken = self._block.vcpu(number).taken == lib.KVMSR_TAKEN
                if taken and number not in self._served and not self._start(number):
                    break  # and try again in the next round
        if not self.recorded:
            self._log(_MOST_LOGGED)

    def _start(self, number: int) -> bool:
        try:
            threading.Thread(target=self._answer_all, args=(number,), daemon=True).start()
        except RuntimeError:
            if not self.notes:
                self.notes.append("vCPUs had to wait: no more threads could be started")
            return False
        self._served.add(number)
        return True

    def close(self) -> None:
        """Stop answering, and log the rest. All vCPUs must have ended."""
        self._closed = True
        if not self.recorded:
            self._log(self._block.n_vcpus * lib.KVMSR_EVENTS)

    def _log(self, most: int) -> None:
        """Log up to *most* accesses, beginning with another vCPU each time."""
        count = self._block.n_vcpus
        for step in range(count):
            vcpu = self._block.vcpu((self._next_logged + step) % count)
            while most and (
                taken := lib.kvmsr_take_events(vcpu, self._events, ffi.NULL, min(most, _ROOM))
            ):
                most -= taken
                for event in self._events[0:taken]:
                    self.log_event(event)
        self._next_logged += 1

    def log_event(self, event: Any, callers: tuple[int, ...] = ()) -> None:
        """Log an access, a ``struct kvmsr_event``, if the policy wants that."""
        vm, number = event.vm, event.vcpu
        policy = self._session.policy_of(event.serial)
        if (
            policy is None
            or event.verdict >= _N_VERDICTS
            or not self._are_sound(vm, number, event.op, event.reason)
        ):
            return
        access = made_access(event.value, number, event.index, event.op, event.reason)
        if event.has_rip:
            access = access._replace(where=Where(event.rip, event.cpl & 3, callers, event.guesses))
        policy.native(vm).log(access, event)

    def _answer_all(self, number: int) -> None:
        """Answer the questions of one vCPU; the body of a thread."""
        vcpu = self._block.vcpu(number)
        asked = ffi.new("struct kvmsr_upcall *")
        spin = ffi.new("struct kvmsr_spin *")
        lib.kvmsr_spin_init(spin)
        read = question_reader(asked)
        found = 0
        while not self._closed:
            go_on = lib.kvmsr_answer_and_next if found else lib.kvmsr_next_question
            found = go_on(vcpu, asked, spin, _WAIT_MS)
            if not found:
                continue
            try:
                answered = self._answer(number, asked, read)
            except KeyboardInterrupt:  # from a handler: Ctrl-C is raised in the main thread only
                self._interrupt()
                return
            except Exception as error:  # a model that cannot be set up, for example
                answered = True
                asked.outcome.verdict = lib.KVMSR_FAULT
                if not self.notes:
                    self.notes.append(f"accesses got #GP: {error_text(error)}")
            if not answered:
                return
        if found:
            lib.kvmsr_give_answer(vcpu, asked)

    def _answer(self, record: int, asked: Any, read: Callable[[], tuple[int, ...]]) -> bool:
        """Put the answer into *asked*. Return False if the run stops, and there is no answer."""
        outcome, vcpu = asked.outcome, self._block.vcpu(record)
        vm, number = vcpu.vm, vcpu.id
        serial, value, index, op, reason, rule, verdict = read()
        if verdict == lib.KVMSR_MAY_READ and self._block.tables.reads:
            outcome.verdict = lib.KVMSR_VALUE
            outcome.value = is_unconfined(vcpu.pid)
            if not outcome.value and _CONFINED not in self.notes:
                self.notes.append(_CONFINED)
            return True
        policy = self._session.policy_of(serial)
        if policy is None or not self._are_sound(vm, number, op, reason):
            outcome.verdict = lib.KVMSR_FAULT
            return True
        side = policy.native(vm)
        access = made_access(value, number, index, op, reason)
        if self._block.tables.trace_rip:
            access = access._replace(where=made_where(asked.where))
        if not side.asks(access, rule, stop=verdict == _STOP):
            outcome.verdict = lib.KVMSR_FAULT
            return True
        side.follow_resets()
        found = side.answer(access, outcome)
        if found.verdict is Verdict.STOP:
            self._stop(access, found.rule)
            return False
        return True

    def _are_sound(self, vm: int, vcpu: int, op: int, reason: int) -> bool:
        """Return whether these numbers, which a VMM wrote, are valid."""
        return vm < self._vms and vcpu < self._ids and op < _N_OPS and reason < _N_REASONS
