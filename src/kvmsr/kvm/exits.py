# SPDX-License-Identifier: Apache-2.0
"""
Exits
-----

What :meth:`kvmsr.kvm.Vcpu.run` returns: one class an exit. Those that the guest waits for are
answered in place; an MSR exit must be, exactly once, before the vCPU runs on, because KVM has
already written "no error, value 0" where the answer belongs, and would take silence for that.

The *data* of port and memory exits are views of the kvm_run page: they hold until the vCPU runs on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from kvmsr.abi import ExitReason, InternalError, MsrExitReason
from kvmsr.errors import ExitAnsweredError, UsageError

if TYPE_CHECKING:
    from kvmsr.kvm.running import RunningVcpu as Vcpu

__all__ = (
    "Debug",
    "EmulationFailure",
    "Exit",
    "FailEntry",
    "Hlt",
    "Internal",
    "Interrupted",
    "IoIn",
    "IoOut",
    "IoapicEoi",
    "IrqWindowOpen",
    "MmioRead",
    "MmioWrite",
    "MsrExit",
    "Other",
    "Rdmsr",
    "Shutdown",
    "SystemEvent",
    "Wrmsr",
)

_U64: Final = (1 << 64) - 1


class MsrExit:
    """
    A guest's MSR access that KVM gave up; either :class:`Rdmsr` or :class:`Wrmsr`.

    :ivar index: the MSR, 0 to 2**32 - 1.
    :ivar reason: why KVM gave it up.
    """

    __slots__ = ("_vcpu", "index", "reason")

    op: ClassVar[str]

    def __init__(self, vcpu: "Vcpu", index: int, reason: MsrExitReason) -> None:
        self._vcpu = vcpu
        self.index = index
        self.reason = reason

    def fault(self) -> None:
        """
        Let the instruction raise #GP(0) in the guest.

        :raises ExitAnsweredError: if this exit has been answered already.
        """
        vcpu = self._vcpu
        if vcpu._unanswered is not self:
            self._refuse()
        vcpu._msr.error = 1
        vcpu._unanswered = None

    def _refuse(self) -> NoReturn:
        raise ExitAnsweredError(
            f"{self.op} of MSR {self.index:#x} on vCPU {self._vcpu.id} has been answered already"
        )


class Rdmsr(MsrExit):
    """RDMSR: wants a value, or a fault."""

    __slots__ = ()

    op = "RDMSR"

    def answer(self, value: int) -> None:
        """
        Give the guest *value* in EDX:EAX.

        :param value: 0 to 2**64 - 1.
        :raises UsageError: if it is out of range; the exit is then still to be answered.
        :raises ExitAnsweredError: if this exit has been answered already.
        """
        if not 0 <= value <= _U64:
            raise UsageError(f"RDMSR of MSR {self.index:#x}: {value:#x} does not fit 64 bits")
        vcpu = self._vcpu
        if vcpu._unanswered is not self:
            self._refuse()
        vcpu._msr.data = value  # before it counts: it may be no number
        vcpu._unanswered = None

    def __repr__(self) -> str:
        return f"Rdmsr(index={self.index:#x}, reason={self.reason.name})"


class Wrmsr(MsrExit):
    """WRMSR of :attr:`value`: wants to be done, or a fault."""

    __slots__ = ("value",)

    op = "WRMSR"

    def __init__(self, vcpu: "Vcpu", index: int, reason: MsrExitReason, value: int) -> None:
        super().__init__(vcpu, index, reason)
        self.value = value

    def done(self) -> None:
        """
        Let the instruction end well.

        :raises ExitAnsweredError: if this exit has been answered already.
        """
        vcpu = self._vcpu
        if vcpu._unanswered is not self:
            self._refuse()
        vcpu._unanswered = None

    def __repr__(self) -> str:
        return f"Wrmsr(index={self.index:#x}, value={self.value:#x}, reason={self.reason.name})"


@dataclass(slots=True)
class IoIn:
    """
    IN or INS: *count* reads of *size* bytes (1, 2 or 4) from *port*.

    *data* is what the guest will get, ``size * count`` bytes to be filled before the vCPU runs on.
    """

    port: int
    size: int
    count: int
    data: memoryview


@dataclass(slots=True)
class IoOut:
    """OUT or OUTS: *count* writes of *size* bytes (1, 2 or 4) to *port*, all in *data*."""

    port: int
    size: int
    count: int
    data: memoryview


@dataclass(slots=True)
class MmioRead:
    """A read of guest-physical *address*; *data* (1 to 8 bytes) is to be filled."""

    address: int
    data: memoryview


@dataclass(slots=True)
class MmioWrite:
    """A write of *data* (1 to 8 bytes) to guest-physical *address*."""

    address: int
    data: memoryview


@dataclass(slots=True)
class Hlt:
    """HLT, without an in-kernel interrupt controller."""


@dataclass(slots=True)
class Shutdown:
    """A triple fault."""


@dataclass(slots=True)
class Interrupted:
    """KVM_RUN returned without an exit: a signal, a kick, or a vCPU that INIT or SIPI woke."""


@dataclass(slots=True)
class IrqWindowOpen:
    """The guest can take an interrupt now (``request_interrupt_window`` asked to be told)."""


@dataclass(slots=True)
class Debug:
    """A guest-debug event; *pc* is linear, *dr6* tells what it was."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(slots=True)
class FailEntry:
    """The hardware refused to enter the guest; *reason* is the vendor's code."""

    reason: int
    cpu: int


@dataclass(slots=True)
class EmulationFailure:
    """
    KVM had to emulate an instruction and cannot.

    *instruction* is what KVM fetched, up to 15 bytes, more than the instruction's own; empty where
    this KVM does not tell. *data* is everything it told, as 64-bit words.
    """

    instruction: bytes
    data: tuple[int, ...]


@dataclass(slots=True)
class Internal:
    """Another KVM_EXIT_INTERNAL_ERROR; *data* is not documented by KVM."""

    suberror: int
    data: tuple[int, ...]


@dataclass(slots=True)
class SystemEvent:
    """A KVM_EXIT_SYSTEM_EVENT (see :class:`kvmsr.abi.SystemEvent`)."""

    type: int
    data: tuple[int, ...]


@dataclass(slots=True)
class IoapicEoi:
    """The guest ended interrupt *vector* of a split irqchip."""

    vector: int


@dataclass(slots=True)
class Other:
    """An exit that has no class of its own; *reason* is KVM's number, *data* the union's bytes."""

    reason: int
    data: bytes

    @property
    def name(self) -> str:
        """Return KVM's name of the exit, or its number if it has none here."""
        try:
            return f"KVM_EXIT_{ExitReason(self.reason).name}"
        except ValueError:
            return f"KVM exit {self.reason}"


Exit = (
    Rdmsr
    | Wrmsr
    | IoIn
    | IoOut
    | MmioRead
    | MmioWrite
    | Hlt
    | Shutdown
    | Interrupted
    | IrqWindowOpen
    | Debug
    | FailEntry
    | EmulationFailure
    | Internal
    | SystemEvent
    | IoapicEoi
    | Other
)


_reason: Final = {0: MsrExitReason(0), **{int(r): r for r in MsrExitReason}}.__getitem__
"""
KVM sets exactly one of the reasons it was asked for; looking it up is cheaper than making it. (None
at all is what the interface had to say before it was merged: the soft backend can be such a KVM.)
"""


def rdmsr(vcpu: "Vcpu") -> Rdmsr:
    """Read a KVM_EXIT_X86_RDMSR off the page."""
    msr = vcpu._msr
    # Not by the class's constructor: this is on the way of every access, and half the price.
    exit_ = _new(Rdmsr)
    exit_._vcpu = vcpu
    exit_.index = msr.index
    exit_.reason = _reason(msr.reason)
    vcpu._unanswered = exit_
    return exit_


_new: Final[Callable[[type[Rdmsr]], Rdmsr]] = object.__new__


def _wrmsr(vcpu: "Vcpu") -> Wrmsr:
    msr = vcpu._msr
    exit_ = Wrmsr(vcpu, msr.index, _reason(msr.reason), msr.data)
    vcpu._unanswered = exit_
    return exit_


def _io(vcpu: "Vcpu") -> IoIn | IoOut:
    io = vcpu._page.exit.io
    start = io.data_offset
    data = vcpu._bytes[start : start + io.size * io.count]
    return (IoOut if io.direction else IoIn)(io.port, io.size, io.count, data)


def _mmio(vcpu: "Vcpu") -> MmioRead | MmioWrite:
    mmio = vcpu._page.exit.mmio
    data = memoryview(mmio.data).cast("B")[: mmio.len]
    return (MmioWrite if mmio.is_write else MmioRead)(mmio.phys_addr, data)


def _debug(vcpu: "Vcpu") -> Debug:
    arch = vcpu._page.exit.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


def _fail_entry(vcpu: "Vcpu") -> FailEntry:
    fail = vcpu._page.exit.fail_entry
    return FailEntry(fail.hardware_entry_failure_reason, fail.cpu)


def _internal(vcpu: "Vcpu") -> EmulationFailure | Internal:
    internal = vcpu._page.exit.internal
    data = tuple(internal.data[: min(internal.ndata, 16)])
    if internal.suberror != InternalError.EMULATION:
        return Internal(internal.suberror, data)
    failure = vcpu._page.exit.emulation_failure
    told = failure.ndata >= 3 and failure.flags & 1
    instruction = bytes(failure.insn_bytes[: min(failure.insn_size, 15)]) if told else b""
    return EmulationFailure(instruction, data)


def _system_event(vcpu: "Vcpu") -> SystemEvent:
    event = vcpu._page.exit.system_event
    return SystemEvent(event.type, tuple(event.data[: min(event.ndata, 16)]))


READERS: Final[dict[int, Callable[["Vcpu"], Any]]] = {
    ExitReason.IO: _io,
    ExitReason.MMIO: _mmio,
    ExitReason.HLT: lambda vcpu: Hlt(),
    ExitReason.SHUTDOWN: lambda vcpu: Shutdown(),
    ExitReason.IRQ_WINDOW_OPEN: lambda vcpu: IrqWindowOpen(),
    ExitReason.DEBUG: _debug,
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.INTERNAL_ERROR: _internal,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: lambda vcpu: IoapicEoi(vcpu._page.exit.eoi.vector),
    ExitReason.X86_RDMSR: rdmsr,
    ExitReason.X86_WRMSR: _wrmsr,
}


def read(vcpu: "Vcpu") -> Exit:
    """Read the exit that *vcpu*'s kvm_run page holds."""
    reason: int = vcpu._page.exit_reason
    reader = READERS.get(reason)
    if reader is None:
        return Other(reason, bytes(vcpu._page.exit))
    exit_: Exit = reader(vcpu)
    return exit_
