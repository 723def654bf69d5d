# SPDX-License-Identifier: Apache-2.0
"""
Exits
-----

What :meth:`kvmsr.kvm.Vcpu.run` returns: one class for each kind of exit. An exit that the guest
waits for is answered in place. An MSR exit must be answered exactly once before the vCPU runs on,
see :mod:`kvmsr.kvm.msr_exits`.

The *data* of port and memory exits are views of the kvm_run page: they hold until the vCPU runs on.
"""

from dataclasses import dataclass

from kvmsr.abi import ExitReason
from kvmsr.kvm.msr_exits import MsrExit, Rdmsr, Wrmsr

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
    """
    KVM_RUN returned without an exit.

    The reason is a signal, a kick, or an INIT or SIPI that woke the vCPU; or, on the soft backend,
    that nothing in the VM can wake any of its vCPUs.
    """


@dataclass(slots=True)
class IrqWindowOpen:
    """The guest can take an interrupt now, as ``request_interrupt_window`` asked for."""


@dataclass(slots=True)
class Debug:
    """A guest-debug event; *pc* is a linear address, *dr6* says which event it was."""

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

    *instruction* is what KVM fetched, up to 15 bytes, which may be more than the instruction; empty
    where this KVM does not report it. *data* is everything KVM reported, as 64-bit words.
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
