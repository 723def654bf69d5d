# SPDX-License-Identifier: Apache-2.0
"""
The kvm_run page
----------------

What a vCPU shares with user space, and the exits that are written into it.
"""

import ctypes
import mmap
from typing import Any, Final

from kvmsr.abi import ExitReason, InternalError, SystemEvent, size_of
from kvmsr.abi.run import PIO_PAGE_OFFSET, ExitHyperv, Run
from kvmsr.backend.soft.cpu.access import MemoryAccess, PortAccess
from kvmsr.backend.soft.hyperv.partition import Debugger
from kvmsr.backend.soft.hyperv.synic import Synic

__all__ = ("DATA", "MMAP_SIZE", "RunPage")

MMAP_SIZE: Final = 0x3000
DATA: Final = PIO_PAGE_OFFSET * 0x1000
"""Where in the mapping the data of port accesses lie."""
_SYNIC, _HCALL, _SYNDBG = 1, 2, 3


class RunPage:
    """
    The mapping of a vCPU.

    :param memory: where it lies; by default in memory of its own.
    :ivar bytes: all of it.
    :ivar run: what it starts with, struct kvm_run.
    :ivar exited: an exit was written for which the guest has to stop; reset by whoever lets the
        guest go on.
    """

    def __init__(self, memory: "mmap.mmap | memoryview | None" = None) -> None:
        self.bytes = mmap.mmap(-1, MMAP_SIZE) if memory is None else memory
        self.run: Any = Run.from_buffer(self.bytes)
        self.exited = False

    def exit(self, reason: ExitReason) -> bool:
        """Write an exit without data; return False, for the guest does not go on."""
        self.run.exit_reason = reason
        self.exited = True
        return False

    def exit_io(self, access: PortAccess, count: int) -> None:
        """Write a KVM_EXIT_IO for *count* elements; their data are the caller's to write."""
        run = self.run
        run.exit_reason = ExitReason.IO
        io = run.exit.io
        io.direction, io.size, io.port = access.write, access.size, access.port
        io.count, io.data_offset = count, DATA

    def exit_mmio(self, access: MemoryAccess) -> None:
        """Write a KVM_EXIT_MMIO."""
        run = self.run
        run.exit_reason = ExitReason.MMIO
        mmio = run.exit.mmio
        mmio.phys_addr, mmio.len, mmio.is_write = access.address, access.size, bool(access.write)
        mmio.data[:] = access.value.to_bytes(8, "little")

    def exit_system_event(self, event: SystemEvent) -> None:
        """Write a KVM_EXIT_SYSTEM_EVENT."""
        self.run.exit.system_event.type, self.run.exit.system_event.ndata = event, 0
        self.exit(ExitReason.SYSTEM_EVENT)

    def exit_hypercall(self, control: int, params: tuple[int, int]) -> None:
        """Write a KVM_EXIT_HYPERV for a hypercall."""
        call = self._exit_hyperv(_HCALL).hcall
        call.input, call.params[:] = control, params

    def exit_synic(self, msr: int, synic: Synic) -> None:
        """Write a KVM_EXIT_HYPERV for a write to the SynIC."""
        said = self._exit_hyperv(_SYNIC).synic
        said.msr, said.control = msr, synic.control
        said.evt_page, said.msg_page = synic.event_page, synic.message_page

    def exit_debugger(self, msr: int, debugger: Debugger) -> None:
        """Write a KVM_EXIT_HYPERV for a write to the synthetic debugger."""
        said = self._exit_hyperv(_SYNDBG).syndbg
        said.msr, said.control, said.send_page = msr, debugger.control, debugger.send_page
        said.recv_page, said.pending_page = debugger.recv_page, debugger.pending_page

    def _exit_hyperv(self, kind: int) -> Any:
        self.exit(ExitReason.HYPERV)
        ctypes.memset(ctypes.addressof(self.run.exit.hyperv), 0, size_of(ExitHyperv))
        self.run.exit.hyperv.type = kind
        return self.run.exit.hyperv.u

    def exit_emulation_failure(self) -> None:
        """Write what KVM reports where it cannot emulate; what it fetched is left out."""
        run = self.run
        run.exit_reason = ExitReason.INTERNAL_ERROR
        failure: Any = run.exit.emulation_failure
        failure.suberror = InternalError.EMULATION
        failure.ndata, failure.flags, failure.insn_size = 0, 0, 0
