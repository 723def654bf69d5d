# SPDX-License-Identifier: Apache-2.0
"""
The native run loop
-------------------

A vCPU's KVM_RUN in C: accesses that the table can answer never reach Python, and the interpreter's
lock is free while the guest runs.
"""

from collections.abc import Callable

from kvmsr.backend import HostBackend
from kvmsr.dispatch import Outcome, Verdict
from kvmsr.kvm import Vcpu
from kvmsr.native import ffi, lib
from kvmsr.native.block import access_reader
from kvmsr.native.questions import NativeDispatcher, made_access
from kvmsr.policy import Access

__all__ = ("NativeLoop",)

_STOP = Verdict.STOP


class NativeLoop:
    """
    Runs a vCPU until an exit that is no MSR access; called instead of KVM_RUN.

    :param stop: takes the access at which the policy stops the run.
    """

    def __init__(
        self,
        native: NativeDispatcher,
        backend: HostBackend,
        vcpu: Vcpu,
        stop: Callable[[Access, Outcome], None],
    ) -> None:
        self._native = native
        self._backend = backend
        self._vcpu = vcpu
        self._stop = stop
        self._cpu = ffi.new("struct kvmsr_cpu *")
        self._cpu.block = native.block.raw
        self._cpu.shared = self._shared = native.block.take(0, vcpu.id)
        self._cpu.fd = vcpu.fd
        self._page = ffi.from_buffer(vcpu.page)
        self._cpu.run = ffi.cast("struct kvm_run *", self._page)
        self._read, self._outcome = access_reader(self._cpu), self._cpu.outcome

    @property
    def exits(self) -> int:
        """Return how many accesses there were."""
        return int(self._shared.exits)

    def close(self) -> None:
        """Let go of the vCPU's page."""
        self._cpu.run = ffi.NULL
        ffi.release(self._page)

    def __call__(self) -> None:
        """
        Run the vCPU.

        :raises OSError: as KVM_RUN.
        """
        loop, run, cpu, fd = self._backend.loop, lib.kvmsr_run, self._cpu, self._vcpu.fd
        raw, read, answer = self._outcome, self._read, self._native.answer
        ends, tells = lib.KVMSR_EXIT, lib.KVMSR_TELL
        while True:
            status = loop(fd, run, cpu)
            if status == ends:
                return
            access = made_access(*read())
            if status == tells:
                self._native.tell(access, raw)
                continue
            try:
                outcome = answer(access, raw)
            except BaseException:
                raw.verdict = lib.KVMSR_FAULT  # should it run on: never a silent zero
                raise
            if outcome.verdict is _STOP:
                self._stop(access, outcome)
