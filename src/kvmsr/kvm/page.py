# SPDX-License-Identifier: Apache-2.0
"""
The page that KVM and user space share
--------------------------------------

A vCPU's kvm_run page: what is written into it before KVM_RUN, and the exit that is read off it
afterwards.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kvmsr.abi import ExitReason, InternalError
from kvmsr.abi.run import Run
from kvmsr.errors import UsageError
from kvmsr.kvm.exits import (
    Debug,
    EmulationFailure,
    Exit,
    FailEntry,
    Hlt,
    Internal,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    Other,
    Shutdown,
    SystemEvent,
)
from kvmsr.kvm.msr_exits import PendingMsr

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("RunPage",)

REASON: Final = Run.exit_reason.offset // 4  # type: ignore[attr-defined]
"""Where *exit_reason* lies in :attr:`RunPage.words`."""


class _Closed:
    """Stands in for a page that is gone: every use of it is refused."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError(self._what)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise UsageError(self._what)


class RunPage:
    """
    The kvm_run page of vCPU *vcpu_id*, and what follows it.

    :param mapping: the vCPU's mapping.
    :ivar run: the structure struct kvm_run.
    :ivar bytes: the whole mapping.
    :ivar words: the same as 32-bit numbers: faster than through the structure.
    :ivar pending: the MSR access in it.
    """

    __slots__ = ("bytes", "pending", "run", "words")

    def __init__(self, mapping: "Buffer", vcpu_id: int) -> None:
        self.bytes = memoryview(mapping)
        self.words = self.bytes.cast("B").cast("I")
        self.run: Any = Run.from_buffer(mapping)
        self.pending = PendingMsr(vcpu_id, self.run.exit.msr)

    def close(self) -> None:
        """Let go of the mapping; an MSR access that waits for an answer is lost."""
        self.pending.exit = None
        self.run = self.pending.msr = _Closed(f"vCPU {self.pending.vcpu_id} is closed")
        self.words.release()
        self.bytes.release()

    def read(self) -> Exit:
        """Return the exit that the page holds."""
        reason = self.words[REASON]
        reader = READERS.get(reason)
        if reader is None:
            return Other(reason, bytes(self.run.exit))
        exit_: Exit = reader(self)
        return exit_


def _io(page: RunPage) -> IoIn | IoOut:
    io = page.run.exit.io
    start = io.data_offset
    data = page.bytes[start : start + io.size * io.count]
    return (IoOut if io.direction else IoIn)(io.port, io.size, io.count, data)


def _mmio(page: RunPage) -> MmioRead | MmioWrite:
    mmio = page.run.exit.mmio
    data = memoryview(mmio.data).cast("B")[: mmio.len]
    return (MmioWrite if mmio.is_write else MmioRead)(mmio.phys_addr, data)


def _debug(page: RunPage) -> Debug:
    arch = page.run.exit.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


def _fail_entry(page: RunPage) -> FailEntry:
    fail = page.run.exit.fail_entry
    return FailEntry(fail.hardware_entry_failure_reason, fail.cpu)


def _internal(page: RunPage) -> EmulationFailure | Internal:
    internal = page.run.exit.internal
    data = tuple(internal.data[: min(internal.ndata, 16)])
    if internal.suberror != InternalError.EMULATION:
        return Internal(internal.suberror, data)
    failure = page.run.exit.emulation_failure
    has_bytes = failure.ndata >= 3 and failure.flags & 1
    instruction = bytes(failure.insn_bytes[: min(failure.insn_size, 15)]) if has_bytes else b""
    return EmulationFailure(instruction, data)


def _system_event(page: RunPage) -> SystemEvent:
    event = page.run.exit.system_event
    return SystemEvent(event.type, tuple(event.data[: min(event.ndata, 16)]))


READERS: Final[dict[int, Callable[[RunPage], Any]]] = {
    ExitReason.IO: _io,
    ExitReason.MMIO: _mmio,
    ExitReason.HLT: lambda page: Hlt(),
    ExitReason.SHUTDOWN: lambda page: Shutdown(),
    ExitReason.IRQ_WINDOW_OPEN: lambda page: IrqWindowOpen(),
    ExitReason.DEBUG: _debug,
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.INTERNAL_ERROR: _internal,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: lambda page: IoapicEoi(page.run.exit.eoi.vector),
    ExitReason.X86_RDMSR: lambda page: page.pending.rdmsr(),
    ExitReason.X86_WRMSR: lambda page: page.pending.wrmsr(),
}
"""How each exit is read off the page, by exit reason."""
