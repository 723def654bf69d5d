# SPDX-License-Identifier: Apache-2.0
"""
Tables of handlers
------------------

How the families write down what they do: a function for reads and one for writes, by MSR. What
most MSRs do is said by a few makers of such functions.
"""

from collections.abc import Callable, Iterable
from typing import Final

from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.vcpu import MsrVcpu

__all__ = (
    "INVALID",
    "UNSUPPORTED",
    "Handlers",
    "Read",
    "Write",
    "constant",
    "cpu_held",
    "drop",
    "refuse",
    "stored",
)

Read = Callable[[MsrVcpu, int, bool], tuple[MsrRet, int]]
"""Takes vCPU, index, and whether the host asks; gives result and value."""

Write = Callable[[MsrVcpu, int, int, bool], MsrRet]
"""Takes vCPU, index, value, and whether the host asks."""

INVALID: Final = (MsrRet.INVALID, 0)
UNSUPPORTED: Final = (MsrRet.UNSUPPORTED, 0)


class Handlers:
    """
    What some MSRs do; an MSR that is missing is one that KVM does not know.

    :ivar read: by index.
    :ivar write: by index.
    """

    def __init__(self) -> None:
        self.read: dict[int, Read] = {}
        self.write: dict[int, Write] = {}

    def add(self, indices: int | Iterable[int], read: Read | None, write: Write | None) -> None:
        """Add handlers of some MSRs; None: that direction is unknown."""
        for index in (indices,) if isinstance(indices, int) else indices:
            if read is not None:
                self.read[index] = read
            if write is not None:
                self.write[index] = write

    def update(self, other: "Handlers") -> None:
        """Add those of *other*, which win."""
        self.read.update(other.read)
        self.write.update(other.write)


def constant(value: int) -> Read:
    """Read *value*."""
    answer = (MsrRet.OK, value)
    return lambda vcpu, index, host: answer


def drop(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    """Accept a write without effect."""
    return MsrRet.OK


def refuse(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    """Refuse a write."""
    return MsrRet.INVALID


def _read_stored(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return MsrRet.OK, vcpu.msrs[index]


def _write_stored(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    vcpu.msrs[index] = value
    return MsrRet.OK


stored: Final = (_read_stored, _write_stored)
"""Read what was written, whatever it was."""


def _read_cpu(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return MsrRet.OK, vcpu.cpu.read_msr(index)


def _write_cpu(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    vcpu.cpu.write_msr(index, value)
    return MsrRet.OK


cpu_held: Final = (_read_cpu, _write_cpu)
"""Read and write what the CPU itself holds."""
