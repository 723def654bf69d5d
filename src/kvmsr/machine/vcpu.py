# SPDX-License-Identifier: Apache-2.0
"""
vCPU threads
------------

One thread per vCPU enters the guest and handles its exits.

A thread runs until the run is over. Whoever ends the run first sets ``Runner.over`` and then kicks
every vCPU, so a thread either sees the flag before it enters the guest or is kicked out of it. No
lock is taken on the path of an MSR access.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from kvmsr.abi import Chip, ExitReason, Mp
from kvmsr.errors import KvmsrError
from kvmsr.kvm import Vcpu, Vm
from kvmsr.kvm.exits import (
    EmulationFailure,
    Exit,
    FailEntry,
    Hlt,
    Internal,
    Interrupted,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Other,
    Shutdown,
    SystemEvent,
)
from kvmsr.machine.board import Board
from kvmsr.machine.diagnose import explain_emulation_failure, explain_internal
from kvmsr.machine.gate import Gate
from kvmsr.session import End, EndKind, GuestVcpu, LastAccess, Position
from kvmsr.session.result import CRASHED, INTERRUPTED

__all__ = ("Runner", "VcpuThread")

_log = logging.getLogger(__name__)

_INTERRUPT_FLAG: Final = 1 << 9
_LVT0: Final = 0x350
_MASKED_OR_MODE: Final = 1 << 16 | 7 << 8
_MODE_NMI: Final = 4 << 8

_SERVED: Final = (IoOut, IoIn, MmioRead, MmioWrite)
"""The exits that the board handles."""


class Runner(Protocol):
    """What a vCPU's thread needs to know about its machine."""

    vm: Vm
    board: Board
    gate: Gate
    over: bool

    def end(self, end: End) -> None:
        """End the run, unless it has ended already. May be called from any thread."""

    def fell_asleep(self) -> None:
        """Note that one more vCPU is asleep. May be called from any thread."""


class VcpuThread(threading.Thread):
    """
    A vCPU and the thread that runs it.

    :param guest: runs the vCPU and answers its MSR accesses.
    :ivar vcpu: the vCPU.
    :ivar asleep: whether, when last interrupted, only another vCPU could wake it: it waited for
        SIPI, or had halted with interrupts disabled and no interrupt line was wired to NMI.
    :ivar stopped_at: where it was when the policy stopped the run, if it was stopped by this vCPU.
    """

    def __init__(self, runner: Runner, vcpu: Vcpu, guest: GuestVcpu) -> None:
        super().__init__(name=f"vcpu{vcpu.id}", daemon=True)
        self.vcpu = vcpu
        self.asleep = False
        self.stopped_at: Position | None = None
        self._exits = 0
        self._last_port: tuple[IoIn | IoOut, bytes] | None = None
        self._last_memory: tuple[MmioRead | MmioWrite, bytes] | None = None
        self._guest = guest
        self._runner = runner

    @property
    def exits(self) -> int:
        """Return the number of exits so far, as a sign of life."""
        return self._exits + self._guest.accesses

    def let_go(self) -> None:
        """Release the vCPU, which is about to be closed."""
        self._guest.close()

    def run(self) -> None:
        """Run the guest until the run is over."""
        try:
            self._loop()
        except KvmsrError as error:
            self._end(EndKind.ERROR, error.exit_status, str(error))
        except KeyboardInterrupt:  # from a handler: signals only reach the main thread
            self._end(EndKind.STOP, INTERRUPTED, "interrupted by a handler")
        except BaseException as error:
            # Whatever it is, the other threads must not wait for this one forever.
            _log.debug("vCPU %d", self.vcpu.id, exc_info=True)
            what = f"vCPU {self.vcpu.id}: {type(error).__name__}: {error}"
            self._end(EndKind.ERROR, 1, f"this is a bug in kvmsr, please report it: {what}")

    def _loop(self) -> None:
        runner, guest = self._runner, self._guest
        while not runner.over:
            runner.gate.pass_through()
            exit_ = guest.run(self._serve)
            if type(exit_) is Interrupted:
                self._look_whether_asleep()
                if self.asleep:
                    runner.fell_asleep()
            else:
                self._rare(exit_)
                self._exits += 1

    def _serve(self, exit_: Exit) -> bool:
        """Let the board handle an exit, and return whether it is one of the board's."""
        if type(exit_) not in _SERVED:
            return False
        try:
            self._runner.board.serve(exit_)  # type: ignore[arg-type]
        except OSError as error:
            self._end(EndKind.ERROR, 1, f"cannot write the guest's output: {error.strerror}")
        # The data is a view of the page, which the next exit overwrites.
        if isinstance(exit_, (IoOut, IoIn)):
            self._last_port = exit_, bytes(exit_.data)
        else:
            self._last_memory = exit_, bytes(exit_.data)  # type: ignore[union-attr,assignment]
        self._exits += 1
        return True

    def last_accesses(
        self, name_device: Callable[[bool, int], str]
    ) -> tuple[LastAccess | None, LastAccess | None]:
        """
        Return the last port and the last memory access that the board handled.

        :param name_device: returns which device is in memory (True) or at a port, by the address.
        """
        port = memory = None
        if self._last_port is not None:
            exit_, data = self._last_port
            value = int.from_bytes(data[-exit_.size :], "little")
            device = name_device(False, exit_.port)
            port = LastAccess(exit_.port, type(exit_) is IoOut, exit_.size, value, device)
        if self._last_memory is not None:
            access, data = self._last_memory
            value, device = int.from_bytes(data, "little"), name_device(True, access.address)
            writes = type(access) is MmioWrite
            memory = LastAccess(access.address, writes, len(data), value, device)
        return port, memory

    # Other exits

    def _rare(self, exit_: Exit) -> None:
        if isinstance(exit_, Shutdown):
            self._end(EndKind.SHUTDOWN, CRASHED, "triple fault")
        elif isinstance(exit_, EmulationFailure):
            detail = explain_emulation_failure(self._runner.vm, self.vcpu, exit_)
            self._end(EndKind.EMULATION_FAILURE, CRASHED, detail)
        elif isinstance(exit_, (Internal, FailEntry)):
            detail = explain_internal(self.vcpu, exit_)
            self._end(EndKind.ERROR, CRASHED, detail)
        elif isinstance(exit_, Hlt):
            self._end(EndKind.HALT, 0, "the guest halted")
        elif isinstance(exit_, SystemEvent):
            self._end(EndKind.SHUTDOWN, 0, f"KVM system event {exit_.type}")
        elif isinstance(exit_, Other) and exit_.reason == ExitReason.SET_TPR:
            pass
        else:
            name = exit_.name if isinstance(exit_, Other) else type(exit_).__name__
            self._end(EndKind.ERROR, 1, f"vCPU {self.vcpu.id}: kvmsr cannot handle {name}")

    def _look_whether_asleep(self) -> None:
        """Find out, after an interruption, whether it sleeps until another vCPU wakes it."""
        state = self.vcpu.get_mp_state()
        if state is Mp.HALTED:
            masked = not self.vcpu.get_regs().rflags & _INTERRUPT_FLAG
            self.asleep = masked and not self._nmis_may_come()
        else:
            self.asleep = state in (Mp.UNINITIALIZED, Mp.INIT_RECEIVED)

    def _nmis_may_come(self) -> bool:
        """Return whether a line is wired to NMI, as a watchdog does with the timer's."""
        lint0 = int.from_bytes(bytes(self.vcpu.get_lapic().regs[_LVT0 : _LVT0 + 4]), "little")
        pins = self._runner.vm.get_irqchip(Chip.IOAPIC).chip.ioapic.redirtbl
        return any(entry & _MASKED_OR_MODE == _MODE_NMI for entry in (lint0, *pins))

    def _end(self, kind: EndKind, code: int, detail: str) -> None:
        self._runner.end(End(kind, code, detail))
