# SPDX-License-Identifier: Apache-2.0
"""
The kvm_run page
----------------

What a vCPU shares with user space, and the exits that are written into it.
"""

import mmap
from typing import Any, Final

from kvmsr.abi import ExitReason, InternalError
from kvmsr.abi.run import PIO_PAGE_OFFSET, Run
from kvmsr.backend.soft.cpu.access import MemoryAccess, PortAccess

__all__ = ("DATA", "MMAP_SIZE", "RunPage")

MMAP_SIZE: Final = 0x3000
DATA: Final = PIO_PAGE_OFFSET * 0x1000
"""Where in the mapping the data of port accesses lie."""


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

    def exit_emulation_failure(self) -> None:
        """Write what KVM reports where it cannot emulate; what it fetched is left out."""
        run = self.run
        run.exit_reason = ExitReason.INTERNAL_ERROR
        failure: Any = run.exit.emulation_failure
        failure.suberror = InternalError.EMULATION
        failure.ndata, failure.flags, failure.insn_size = 0, 0, 0
