# SPDX-License-Identifier: Apache-2.0
"""
Questions of a VMM's vCPUs
--------------------------

An access that takes Python becomes a question in the shared memory; the vCPU sleeps on a futex
until it is answered. Each vCPU has a thread here, which sleeps on the same futex until there is
one.

Questions are numbered. The VMM may give one up, because its controller seems dead or it has to
write the vCPU's state, and ask the next: an answer is put in place only if its own question still
waits (native/c/upcall.c).

Whatever is read from the memory may have been written by an adversary, and may change while it is
read: so it is copied first, and checked.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from kvmsr.dispatch import Verdict
from kvmsr.native import ffi, lib
from kvmsr.native.words import OPS, REASONS, VERDICTS, access_of
from kvmsr.policy import Access
from kvmsr.session import Session

__all__ = ("Questions",)

_WAIT_MS: Final = 100


class Questions:
    """
    Answers questions, and logs what the VMM's vCPUs want logged, until closed.

    :param session: the policy at work.
    :param stop: takes the access at which the policy stops the run, and the rule that says so.
    :param interrupt: is called if a handler raises KeyboardInterrupt.
    """

    def __init__(
        self,
        session: Session,
        stop: Callable[[Access, str], None],
        interrupt: Callable[[], None],
    ) -> None:
        self._session = session
        self._stop = stop
        self._interrupt = interrupt
        self._served = 0
        self._closed = False

    def serve(self, vcpus: Sequence[Any]) -> None:
        """Begin to answer those of *vcpus* that are new, and log what all of them report."""
        for vcpu in vcpus[self._served :]:
            threading.Thread(target=self._answer_all, args=(vcpu,), daemon=True).start()
        self._served = len(vcpus)
        self._log(vcpus)

    def close(self) -> None:
        """Answer no more."""
        self._closed = True

    def _log(self, vcpus: Sequence[Any]) -> None:
        event = ffi.new("struct kvmsr_event *")
        for vcpu in vcpus:
            while lib.kvmsr_next_event(vcpu, event):
                policy = self._session.policy_of(event.serial)
                if policy is None or not _is_sound(event) or event.verdict >= len(VERDICTS):
                    continue
                raw = ffi.new(
                    "struct kvmsr_access *",
                    (event.value, vcpu.id, event.index, event.op, event.reason),
                )
                policy.native(vcpu.vm).log(access_of(raw), event)

    def _answer_all(self, vcpu: Any) -> None:
        """Answer the questions of one vCPU; a thread of its own does."""
        asked = ffi.new("struct kvmsr_upcall *")
        while not self._closed:
            question = lib.kvmsr_await_question(vcpu, _WAIT_MS)
            if not question:
                continue
            ffi.memmove(asked, ffi.addressof(vcpu, "upcall"), ffi.sizeof("struct kvmsr_upcall"))
            try:
                answered = self._answer(vcpu.vm, asked)
            except KeyboardInterrupt:  # a handler's: signals reach the main thread alone
                self._interrupt()
                return
            if not answered:
                return
            outcome = asked.outcome
            lib.kvmsr_give_answer(vcpu, question, outcome.verdict, outcome.value, outcome.name)

    def _answer(self, vm: int, asked: Any) -> bool:
        """Put what shall happen into *asked*; False: nothing, the VMM is to be ended."""
        outcome = asked.outcome
        policy = self._session.policy_of(asked.serial)
        if policy is None or not _is_sound(asked.access):
            outcome.verdict = lib.KVMSR_FAULT
            return True
        side = policy.native(vm)
        if outcome.verdict != lib.KVMSR_STOP and not side.asks_python(outcome.rule):
            outcome.verdict = lib.KVMSR_FAULT
            return True
        access = access_of(asked.access)
        found = side.answer(access, outcome)
        if found.verdict is Verdict.STOP:
            self._stop(access, found.rule)
            return False
        return True


def _is_sound(raw: Any) -> bool:
    """Return whether the numbers of *raw* stand for words."""
    return bool(raw.op < len(OPS) and raw.reason < len(REASONS))
