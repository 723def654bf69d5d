# SPDX-License-Identifier: Apache-2.0
"""
The native run loop
-------------------

Run a vCPU in C. Accesses that the table can answer never reach Python, and the interpreter's lock
is free while the guest runs.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from kvmsr.dispatch import Outcome, Verdict
from kvmsr.native import ffi, lib
from kvmsr.native.block import access_reader
from kvmsr.native.vm import NativeVm
from kvmsr.native.words import made_access, made_where
from kvmsr.policy import Access

__all__ = ("NativeLoop", "guest_memory")

_STOP = Verdict.STOP

Enter = Callable[[int, Callable[[Any], int], Any], int]
"""Calls a C function that runs a vCPU, given by its descriptor, so that kicks interrupt it."""


class NativeLoop:
    """
    Runs a vCPU until it exits for anything but an MSR access. Call it instead of KVM_RUN.

    :param vm: the Python side of the VM.
    :param side: returns the VM's Python side under the policy with the given number, because the
        policy may be replaced while the guest runs; None if it was replaced long ago.
    :param vcpu: the vCPU's number.
    :param fd: the vCPU's file descriptor.
    :param page: the vCPU's kvm_run page.
    :param enter: calls the C function that runs the vCPU.
    :param stop: called with the access at which the policy stops the run.
    :param memory: the VM's memory, of :func:`guest_memory`; without it, callers are not known.
    :param can_sync: whether this KVM can put general and special registers into the page.
    """

    def __init__(
        self,
        vm: NativeVm,
        side: Callable[[int], NativeVm | None],
        vcpu: int,
        fd: int,
        page: memoryview,
        enter: Enter,
        stop: Callable[[Access, Outcome], None],
        memory: Any = None,
        *,
        can_sync: bool = False,
    ) -> None:
        self._side = side
        self._fd = fd
        self._enter = enter
        self._stop = stop
        self._cpu = vm.block.new_cpu(vm.number, vcpu)
        self._shared = self._cpu.shared
        self._cpu.fd = fd
        self._memory, self._cpu.can_sync = memory, can_sync
        if memory is not None:
            self._cpu.memory = memory
        self._page = ffi.from_buffer(page)
        self._cpu.run = ffi.cast("struct kvm_run *", self._page)
        self._read, self._outcome = access_reader(self._cpu), self._cpu.outcome

    @property
    def exits(self) -> int:
        """Return the number of accesses."""
        return int(self._shared.exits)

    def close(self) -> None:
        """Release the vCPU's page."""
        self._cpu.run = ffi.NULL
        ffi.release(self._page)

    def __call__(self) -> None:
        """
        Run the vCPU.

        :raises OSError: if KVM_RUN fails.
        """
        enter, run, cpu, fd = self._enter, lib.kvmsr_run, self._cpu, self._fd
        raw, read, side = self._outcome, self._read, self._side
        ends, logs, tables = lib.KVMSR_EXIT, lib.KVMSR_LOG, cpu.tables
        while True:
            status = enter(fd, run, cpu)
            if status == ends:
                return
            access, vm = made_access(*read()), side(cpu.serial)
            if tables.trace_rip:
                access = access._replace(where=made_where(cpu.where))
            if vm is None:
                raw.verdict = lib.KVMSR_FAULT  # never a silent zero
                continue
            if status == logs:
                vm.log(access, raw)
                continue
            try:
                outcome = vm.answer(access, raw)
            except BaseException:
                raw.verdict = lib.KVMSR_FAULT  # if it runs on
                raise
            if outcome.verdict is _STOP:
                self._stop(access, outcome)


def guest_memory(slots: Mapping[int, tuple[int, memoryview]]) -> Any:
    """
    Return a ``struct kvmsr_memory`` of this process.

    :param slots: guest-physical address and memory of each slot, by the slot's number.
    """
    made = ffi.new("struct kvmsr_memory *")
    made.pid = os.getpid()
    for number, (first, memory) in slots.items():
        with ffi.from_buffer(memory) as found:  # the address alone: the memory may be closed
            host = int(ffi.cast("uintptr_t", found))
        lib.kvmsr_set_slot(made, number, first, len(memory), host)
    return made
