# SPDX-License-Identifier: Apache-2.0
"""
Running a vCPU
--------------

KVM_RUN and the page that it shares with user space.

*When an operation is complete.* After an exit that the guest waits for (port and memory reads, MSR
accesses) the instruction is not finished: registers show the state before it, and KVM finishes it
first thing in the next KVM_RUN. What waits there is no part of what the other ioctls save, and it
would be done on top of any state written meanwhile. So before saving, resetting or rewriting a
vCPU, call :meth:`RunningVcpu.complete_pending`.

*No exit is lost.* A signal handler may raise anywhere, also between KVM_RUN and the line that reads
its exit. KVM has answered an MSR access "no error, value 0" by then, and would take the next
KVM_RUN for consent. So ``exit_reason`` is 0 in the page unless it holds an exit that nobody has got
yet, and :meth:`RunningVcpu.run` looks there first.
"""

import errno
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

from kvmsr.abi import ExitReason, SyncReg, cpu, ioctls
from kvmsr.backend.protocol import Backend, ServesInPlace
from kvmsr.errors import ExitUnansweredError, IoctlError, UsageError
from kvmsr.kvm.exits import Exit, Interrupted, MsrExit
from kvmsr.kvm.handle import Handle
from kvmsr.kvm.page import REASON, RunPage

__all__ = ("RunningVcpu",)

_KVM_RUN: Final = ioctls.KVM_RUN
_RDMSR: Final = int(ExitReason.X86_RDMSR)
_NO_EXIT: Final = (0, int(ExitReason.INTR))
_INTERRUPTED: Final = Interrupted()


class RunningVcpu(Handle):
    """
    What of :class:`~kvmsr.kvm.Vcpu` goes through the kvm_run page.

    :ivar id: its number, also its APIC ID.
    """

    def __init__(
        self,
        backend: Backend,
        fd: int,
        vcpu_id: int,
        mmap_size: int,
        keep: object = None,
    ) -> None:
        super().__init__(backend, fd)
        self.id = vcpu_id
        self._keep = keep  # KVM's VM lives as long as its vCPUs, and so must its memory
        self._page = RunPage(backend.mmap(fd, mmap_size), vcpu_id)
        self._pending, self._words = self._page.pending, self._page.words
        self._kicked = False
        self._completing = False
        self._serving = self._declined = False
        self._failure: BaseException | None = None
        self._run_in_place = backend.run if isinstance(backend, ServesInPlace) else None
        self._enter: Callable[[], object] = partial(backend.ioctl, fd, _KVM_RUN)

    def close(self) -> None:
        """Close the vCPU; an access that waits for an answer is lost."""
        if self.fd < 0:
            return
        self._keep = None
        self._page.close()
        super().close()

    # Running

    @property
    def page(self) -> memoryview:
        """The kvm_run page and what follows it."""
        return self._page.bytes

    def run(
        self,
        serve: Callable[[Exit], bool] | None = None,
        by: Callable[[], object] | None = None,
    ) -> Exit:
        """
        Run the guest until its next exit (KVM_RUN).

        :param serve: is given each exit first. Where it returns true it has answered, and the guest
            goes on; else this returns the exit. On the soft backend that saves most of an exit's
            price. It may look at the vCPU, but neither run it nor set its registers.
        :param by: runs the vCPU instead of KVM_RUN. It may do more than one KVM_RUN, and returns
            with an exit in the page, or raises OSError as KVM_RUN does.
        :raises ExitUnansweredError: if the last MSR exit has no answer yet, though *serve* says so.
        :raises IoctlError: if KVM refuses to run the vCPU.
        """
        if self._pending.exit is not None or self._serving or self.fd < 0:
            self._refuse()
        words, enter = self._words, by or self._enter
        while True:
            if words[REASON] in _NO_EXIT:
                words[REASON] = 0
                try:
                    if serve is None or self._run_in_place is None:
                        enter()
                    else:
                        self._run_in_place(self.fd, partial(self._serve, serve))
                except OSError as error:
                    if error is self._failure:  # it is not KVM's
                        raise
                    return self._interrupted(error)
            if serve is not None and not self._declined and self._serve(serve):
                continue
            self._declined = False
            exit_ = self._pending.rdmsr() if words[REASON] == _RDMSR else self._page.read()
            words[REASON] = 0
            return exit_

    def _serve(self, serve: Callable[[Exit], bool]) -> bool:
        """Have *serve* answer the exit in the page; False: the exit is still there."""
        words = self._words
        reason = words[REASON]
        exit_ = self._pending.rdmsr() if reason == _RDMSR else self._page.read()
        words[REASON] = 0
        self._serving = True
        try:
            served = serve(exit_)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._serving = False
        if not served:
            words[REASON] = reason
            self._pending.exit = None
            self._declined = True
        elif self._pending.exit is not None:
            self._refuse()
        return served

    def _interrupted(self, error: OSError) -> Interrupted:
        """KVM_RUN failed: see whether a signal or a kick is why."""
        interrupted = error.errno in (errno.EINTR, errno.EAGAIN)
        if self._words[REASON] not in _NO_EXIT:
            if interrupted or error.errno is None:
                raise error  # a signal handler's: KVM_RUN itself went well
            self._words[REASON] = 0
        # EAGAIN: INIT or SIPI has woken a vCPU that waited for it.
        if not interrupted:
            raise IoctlError("KVM_RUN", error.errno or 0, f"vCPU {self.id}") from None
        if not self._completing:
            # A kick that comes between these two lines is not lost: this return is its effect.
            self._kicked = False
            self._page.run.immediate_exit = 0
        return _INTERRUPTED

    @property
    def unanswered(self) -> MsrExit | None:
        """The MSR exit that has no answer yet, should an exception have come in its way."""
        if self._pending.exit is not None:
            self._words[REASON] = 0
        return self._pending.exit

    def _refuse(self) -> NoReturn:
        if self.fd < 0:
            raise UsageError(f"vCPU {self.id} is closed")
        if self._pending.exit is None:
            raise UsageError(f"vCPU {self.id} has an exit being served; it cannot run now")
        raise ExitUnansweredError(
            f"vCPU {self.id}: {self._pending.exit!r} has no answer yet; call answer(), done() or"
            " fault() on it first"
        )

    def kick(self) -> None:
        """
        Make :meth:`run` return :class:`~kvmsr.kvm.exits.Interrupted` soon; from any thread.

        A closed vCPU takes no notice.
        """
        self._kicked = True
        if self.fd >= 0:
            self.backend.kick(self.fd)

    def complete_pending(self) -> Exit | None:
        """
        Finish the instruction of the last exit without running any other.

        This is what Linux's api.rst demands before state is saved (see the module's text). KVM_RUN
        is entered with ``immediate_exit`` set: KVM completes the instruction and returns. A #GP
        that the answer asked for is then queued: it shows in :meth:`get_vcpu_events`, belongs to
        the state to save, and is dropped by a :meth:`set_regs` that comes after.

        :return: None; or the exit that completing led to: a single step's
            :class:`~kvmsr.kvm.exits.Debug`, or the next part of a wide memory access.
        :raises ExitUnansweredError: if the last MSR exit has no answer yet.
        """
        run = self._page.run
        self._completing = True
        run.immediate_exit = 1
        try:
            exit_ = self.run()
        finally:
            # The same byte carries kicks. One that came meanwhile is for the next run(); it sets
            # _kicked first, so looking after clearing misses none.
            run.immediate_exit = 0
            if self._kicked:
                run.immediate_exit = 1
            self._completing = False
        return None if isinstance(exit_, Interrupted) else exit_

    # Registers through the kvm_run page

    @property
    def valid_regs(self) -> SyncReg:
        """The register groups that each exit leaves in :attr:`sync_regs`."""
        return SyncReg(self._page.run.kvm_valid_regs)

    @valid_regs.setter
    def valid_regs(self, groups: SyncReg) -> None:
        self._page.run.kvm_valid_regs = int(groups)

    @property
    def dirty_regs(self) -> SyncReg:
        """The register groups that the next :meth:`run` takes from :attr:`sync_regs`, once."""
        return SyncReg(self._page.run.kvm_dirty_regs)

    @dirty_regs.setter
    def dirty_regs(self, groups: SyncReg) -> None:
        self._page.run.kvm_dirty_regs = int(groups)

    @property
    def sync_regs(self) -> cpu.SyncRegs:
        """The registers in the kvm_run page, in place (KVM_CAP_SYNC_REGS)."""
        regs: cpu.SyncRegs = self._page.run.s.regs
        return regs

    # Interrupts through the kvm_run page, without an in-kernel irqchip

    @property
    def request_interrupt_window(self) -> bool:
        """Whether :meth:`run` is to return IrqWindowOpen once the guest can take an interrupt."""
        return bool(self._page.run.request_interrupt_window)

    @request_interrupt_window.setter
    def request_interrupt_window(self, wanted: bool) -> None:
        self._page.run.request_interrupt_window = bool(wanted)

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether :meth:`interrupt` would be taken at once, as of the last exit."""
        return bool(self._page.run.ready_for_interrupt_injection)

    @property
    def if_flag(self) -> bool:
        """The guest's RFLAGS.IF, as of the last exit."""
        return bool(self._page.run.if_flag)

    @property
    def cr8(self) -> int:
        """The guest's CR8, 0 to 15: read after an exit, and taken by the next :meth:`run`."""
        return int(self._page.run.cr8)

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._page.run.cr8 = value
