# SPDX-License-Identifier: Apache-2.0
"""
Questions of a VMM's vCPUs
--------------------------

If an access needs Python, the VMM's vCPU writes a question into the shared memory and sleeps on a
futex until it is answered. Here, each vCPU has a thread that sleeps on the same futex until there
is a question. Several vCPUs may be answered at the same time.

A vCPU may give up a question that takes too long, because the controller seems to be dead or
because the VMM has to set the vCPU's state, and may then ask another one. So questions are
numbered, and an answer is put in place only if its own question is still waiting. native/c/upcall.c
explains the protocol.

An adversary may have written what is in the shared memory, and may change it while it is being
read. So a question is copied first, and only the copy is checked and used. Nonsense is answered
with #GP.
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
    Answers the questions of a VMM's vCPUs, and logs the accesses that they report.

    :param session: the policy at work.
    :param stop: called with the access at which the policy stops the run, and with the rule.
    :param interrupt: called if a handler raises KeyboardInterrupt.
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
        """Start to answer the vCPUs that are new in *vcpus*, and log what all of them report."""
        for vcpu in vcpus[self._served :]:
            threading.Thread(target=self._answer_all, args=(vcpu,), daemon=True).start()
        self._served = len(vcpus)
        self._log(vcpus)

    def close(self) -> None:
        """Stop answering."""
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
        """Answer the questions of one vCPU; the body of a thread."""
        asked = ffi.new("struct kvmsr_upcall *")
        while not self._closed:
            question = lib.kvmsr_await_question(vcpu, _WAIT_MS)
            if not question:
                continue
            ffi.memmove(asked, ffi.addressof(vcpu, "upcall"), ffi.sizeof("struct kvmsr_upcall"))
            try:
                answered = self._answer(vcpu.vm, asked)
            except KeyboardInterrupt:  # from a handler: Ctrl-C is raised in the main thread only
                self._interrupt()
                return
            if not answered:
                return
            outcome = asked.outcome
            lib.kvmsr_give_answer(vcpu, question, outcome.verdict, outcome.value, outcome.name)

    def _answer(self, vm: int, asked: Any) -> bool:
        """Put the answer into *asked*. Return False if the run stops, and there is no answer."""
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
    """Return whether *raw*'s direction and reason are valid numbers."""
    return bool(raw.op < len(OPS) and raw.reason < len(REASONS))
