# SPDX-License-Identifier: Apache-2.0
"""
vCPUs for items
---------------

A vCPU that runs a few bytes of guest code and tells what came of them, and its MSRs as the host
sees them.
"""

import errno
from collections.abc import Callable
from typing import Any, Final, TypeVar

from kvmsr.abi import cpu, ioctls
from kvmsr.backend import Memory
from kvmsr.kvm import Vcpu, Vm, exits
from tests.conformance import code, guest
from tests.conformance.outcome import DONE, Done, Fault, Given, Outcome, Value
from tests.conformance.registry import Unmet, equal, holds

__all__ = ("PAGE", "Cpu", "TimeLimitError")

_E = TypeVar("_E")

_MSR_INSTRUCTIONS: Final = (code.RDMSR, code.WRMSR)


class PAGE:
    """Where things are in the kvm_run page, in bytes (spec: Linux' kvm.h)."""

    IMMEDIATE_EXIT = slice(0x01, 0x02)
    EXIT_REASON = slice(0x08, 0x0C)
    APIC_BASE = slice(0x18, 0x20)
    MSR_ERROR = slice(0x20, 0x21)
    MSR_PAD = slice(0x21, 0x28)
    MSR_REASON = slice(0x28, 0x2C)
    MSR_INDEX = slice(0x2C, 0x30)
    MSR_DATA = slice(0x30, 0x38)


class TimeLimitError(Unmet):
    """The item's time was over."""


class Cpu:
    """
    A vCPU in a mode (``real``, ``long``, or ``user`` for CPL 3 in long mode), ready to run code.

    :ivar page: its kvm_run mapping as bytes.
    """

    def __init__(
        self,
        vm: Vm,
        vcpu: Vcpu,
        memory: Memory,
        page: memoryview,
        *,
        mode: str,
        prefix: bytes,
        tells_reason: bool,
        expired: Callable[[], bool],
    ) -> None:
        self.vm = vm
        self.vcpu = vcpu
        self.memory = memory
        self.page = page
        self.mode = mode
        self._prefix = prefix
        self._tells_reason = tells_reason
        self._expired = expired
        self._ran = False
        if mode == "real":
            guest.enter_real_mode(vcpu)
        else:
            guest.enter_long_mode(vcpu, user=mode == "user")

    # Running code

    def put(self, address: int, data: bytes) -> None:
        """Write guest memory."""
        self.memory.view[address : address + len(data)] = data

    def load(self, body: bytes, at: int = guest.CODE, **registers: int) -> None:
        """Make *body* what runs next, in fresh registers; what was pending is finished first."""
        if self._ran:
            self.flush()
        prefix = self._prefix if body[:2] in _MSR_INSTRUCTIONS else b""
        start = at - len(prefix)
        self.put(start, prefix + body)
        self.vcpu.set_regs(guest.start_registers(self.mode, start, registers))

    def run(self) -> exits.Exit:
        """Run until the next exit."""
        self._ran = True
        exit_ = self.vcpu.run()
        if isinstance(exit_, exits.Interrupted) and self._expired():
            raise TimeLimitError("the guest does not come to an end")
        return exit_

    def run_to(self, kind: type[_E]) -> _E:
        """Run until the next exit, which must be of *kind*."""
        exit_ = self.run()
        if not isinstance(exit_, kind):
            raise Unmet(f"{self._seen(exit_)}, expected {kind.__name__}")
        return exit_

    def finish(self) -> Done | Fault:
        """Run to the end of the code, or into an exception."""
        return self._end(self.run())

    def raw_run(self) -> int:
        """Do KVM_RUN and return 0 or the errno; what the exit says is left on the page."""
        self._ran = True
        try:
            self.vcpu.raw_ioctl(ioctls.KVM_RUN)
        except OSError as error:
            return error.errno or 0
        return 0

    def flush(self) -> None:
        """Finish what is pending without running the guest, as api.rst says."""
        self.page[PAGE.IMMEDIATE_EXIT] = b"\1"
        result = self.raw_run()
        self.page[PAGE.IMMEDIATE_EXIT] = b"\0"
        self.page[PAGE.EXIT_REASON] = bytes(4)  # for run(), which takes it for unread otherwise
        holds(result == errno.EINTR, "completing led to another exit")

    @property
    def regs(self) -> cpu.Regs:
        """The general-purpose registers now."""
        return self.vcpu.get_regs()

    def word(self, where: slice) -> int:
        """Return a little-endian number of the page."""
        return int.from_bytes(self.page[where], "little")

    def scribble(self, where: slice, byte: int = 0xFF) -> None:
        """Fill a part of the page, to see whether KVM writes it."""
        self.page[where] = bytes((byte,)) * (where.stop - where.start)

    # MSRs

    def start_rdmsr(self, index: int, then: bytes = b"", **registers: int) -> exits.Rdmsr:
        """Execute RDMSR, which must exit, and leave it pending; *then* follows it."""
        self.load(code.RDMSR + then + code.MARKER, **({"rcx": index} | registers))
        return self.run_to(exits.Rdmsr)

    def start_wrmsr(
        self, index: int, value: int, then: bytes = b"", **registers: int
    ) -> exits.Wrmsr:
        """Execute WRMSR, which must exit, and leave it pending; *then* follows it."""
        self.load(code.WRMSR + then + code.MARKER, **(_operands(index, value) | registers))
        return self.run_to(exits.Wrmsr)

    def read(self, index: int) -> Outcome:
        """Execute RDMSR and tell what comes of it; an exit is answered with 0 and finished."""
        self.load(code.RDMSR + code.MARKER, rcx=index)
        outcome = self._outcome()
        if outcome != DONE:
            return outcome
        regs = self.regs
        return Value((regs.rdx & 0xFFFFFFFF) << 32 | regs.rax & 0xFFFFFFFF)

    def write(self, index: int, value: int) -> Outcome:
        """Execute WRMSR and tell what comes of it; an exit is answered and finished."""
        self.load(code.WRMSR + code.MARKER, **_operands(index, value))
        return self._outcome()

    def _outcome(self) -> Outcome:
        exit_ = self.run()
        if isinstance(exit_, exits.Rdmsr):
            exit_.answer(0)
        elif isinstance(exit_, exits.Wrmsr):
            exit_.done()
        else:
            return self._end(exit_)
        self.flush()
        equal(bool(exit_.reason), self._tells_reason, "a reason is told")
        return Given(exit_.reason)

    def get(self, index: int) -> int | None:
        """Return an MSR as KVM_GET_MSRS gives it, or None if it refuses."""
        count, values = self.get_all([index])
        return values[0] if count else None

    def set(self, index: int, value: int) -> bool:
        """Set an MSR by KVM_SET_MSRS; tell whether that was accepted."""
        return self.set_all([(index, value)]) == 1

    def get_all(self, indices: list[int], fill: int = 0) -> tuple[int, list[int]]:
        """Do KVM_GET_MSRS over data of *fill*; return the count and all data afterwards."""
        table = msr_table([(index, fill) for index in indices])
        count = self.vcpu.raw_ioctl(ioctls.KVM_GET_MSRS, table)
        return count, [entry.data for entry in table.entries]

    def set_all(self, pairs: list[tuple[int, int]]) -> int:
        """Do KVM_SET_MSRS; return the count."""
        return self.vcpu.raw_ioctl(ioctls.KVM_SET_MSRS, msr_table(pairs))

    def _end(self, exit_: exits.Exit) -> Done | Fault:
        if not isinstance(exit_, exits.IoOut):
            raise Unmet(f"{self._seen(exit_)}, expected the end of the code or an exception")
        if exit_.port == code.MARKER_PORT:
            return DONE
        regs = self.regs
        vector = guest.vector_of(regs.rip)
        return Fault(vector, *guest.frame(self.mode, self.memory, vector, regs.rsp))

    def _seen(self, exit_: exits.Exit) -> str:
        if isinstance(exit_, exits.MsrExit):
            exit_.fault()  # it must be answered before anything else can be said about the vCPU
        return f"{exit_!r} at RIP {self.regs.rip:#x}"


def _operands(index: int, value: int) -> dict[str, int]:
    return {"rcx": index, "rax": value & 0xFFFFFFFF, "rdx": value >> 32}


def msr_table(pairs: list[tuple[int, int]]) -> Any:
    """Return the kvm_msrs with *pairs* of index and data."""
    table = cpu.msrs(len(pairs))
    table.nmsrs = len(pairs)
    for entry, (index, value) in zip(table.entries, pairs, strict=True):
        entry.index, entry.data = index, value
    return table
