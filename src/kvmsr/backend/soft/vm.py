# SPDX-License-Identifier: Apache-2.0
"""
A VM of the kernel's
--------------------

What struct kvm is: memory slots, interrupt controllers, time, and the switches of the MSR path. Its
ioctls are in ``vm_ioctls``. Of its vCPUs it knows what it needs for them to share all that.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from kvmsr.abi import Quirk
from kvmsr.backend.soft.clock import Clock
from kvmsr.backend.soft.execution import Execution
from kvmsr.backend.soft.host_tsc import host_tsc_khz
from kvmsr.backend.soft.hyperv.partition import Partition
from kvmsr.backend.soft.irqchip import IrqChip, Pit
from kvmsr.backend.soft.memory import Slots
from kvmsr.backend.soft.msr.filter import MsrFilter
from kvmsr.backend.soft.profile import Profile
from kvmsr.backend.soft.ticker import Ticker
from kvmsr.backend.soft.timers import Timers

__all__ = ("Vm", "VmVcpu")

TSC_KHZ: Final = 1_000_000

_LONGEST_WAIT: Final = 0.5
_LOOK_FOR_SIGNALS: Final = 0.01
_PIC_PORTS: Final = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)

# How often the ticker looks, in seconds: where it has asked a vCPU to come out, else, and where
# none executes.
_AGAIN: Final = 0.001
_LONGEST: Final = 0.05
_IDLE: Final = 0.5


class VmVcpu(Protocol):
    """A vCPU, as its VM sees it; the VM's lock is held."""

    @property
    def has_old_memory(self) -> bool:
        """Whether it executes with memory that may no longer be there."""

    @property
    def looks_for_signals(self) -> bool:
        """Whether a signal ends its KVM_RUN: nobody reports that one has come."""

    @property
    def wakes(self) -> bool:
        """Whether it sleeps and has what ends that, though its thread has yet to see it."""

    @property
    def sleeps_for_good(self) -> bool:
        """Whether only another vCPU or user space can wake it."""

    def attend(self) -> None:
        """Look for what waits for it."""

    def code_written(self, host_address: int, size: int) -> None:
        """Translate code there again."""

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until it is to look again."""

    def look_again(self) -> None:
        """Have it look again if it sleeps."""

    def let_out(self) -> None:
        """Have its KVM_RUN return as for a signal, unless it has since it fell asleep."""

    def stirred(self) -> None:
        """A vCPU has woken up, so that others may."""

    def remind(self, *, contended: bool) -> bool:
        """
        Have it come out of the guest if it should: the first request may have got lost.

        :param contended: another vCPU waits for its turn.
        :return: whether it should.
        """

    def clock_changed(self) -> None:
        """kvmclock was set."""

    def quirks_changed(self) -> None:
        """Other quirks are disabled now."""


class Vm:
    """
    One VM.

    :ivar lock: held around everything that devices and vCPUs share.
    :ivar changed: on that lock; notified when something may be of interest to a thread that does
        not sleep as a vCPU.
    :ivar vcpus: by number; those that are open.
    :ivar numbers: of all vCPUs that there have been: like KVM, a VM keeps them to its end.
    :ivar max_vcpu_ids: the numbers of vCPUs are below this; 0: it is open yet.
    :ivar active: how many vCPUs have begun to run and do not sleep. While one is out of KVM_RUN its
        time goes on.
    """

    def __init__(self, profile: Profile, *, real_time: bool) -> None:
        self.profile: Profile = profile
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        tsc_khz = host_tsc_khz() if real_time else None
        self.clock = Clock(tsc_khz or TSC_KHZ, real_time=real_time)
        self.timers = Timers(self.clock, self.changed)
        self.slots = Slots()
        self.execution = Execution(self.changed)
        self.vcpus: dict[int, VmVcpu] = {}
        self.numbers: set[int] = set()
        self.chip: IrqChip | None = None
        self.pit: Pit | None = None
        self.boot_cpu = self.max_vcpu_ids = 0
        self.user_space_msr_mask = 0
        self.msr_filter: MsrFilter | None = None
        self.guest_can_read_platform_info = True
        self.disabled_quirks = 0
        self.hyperv = Partition()
        self.active = 0
        self.closed = False

    @property
    def irqchip_in_kernel(self) -> bool:
        """Whether KVM_CREATE_IRQCHIP was done."""
        return self.chip is not None

    def has_quirk(self, quirk: Quirk) -> bool:
        """Return whether a quirk is not disabled (KVM_CAP_DISABLE_QUIRKS2)."""
        return not self.disabled_quirks & quirk

    def disable_quirks(self, quirks: int) -> None:
        """Disable these quirks and no others."""
        with self.lock:
            self.disabled_quirks = quirks
            if self.chip is not None:
                self.chip.reenables_lint0 = self.has_quirk(Quirk.LINT0_REENABLED)
            for vcpu in self.vcpus.values():
                vcpu.quirks_changed()

    def close(self) -> None:
        """End; the vCPUs that are still open keep what they need."""
        with self.lock:
            self.closed = True
            self.changed.notify_all()

    # Memory

    def has_memory(self, gpa: int, size: int = 1) -> bool:
        """Return whether there is memory at a guest-physical address."""
        return self.slots.host_address(gpa, size) is not None

    def read_guest(self, gpa: int, size: int) -> bytes | None:
        """Read guest-physical memory within a page; None where there is none."""
        return self.slots.read(gpa, size)

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write to guest-physical memory; return whether it is there."""
        return self.slots.write(gpa, data)

    def memory_changed(self) -> None:
        """Wait until no CPU uses memory that is no longer there."""
        for vcpu in self.vcpus.values():
            vcpu.attend()
        while any(vcpu.has_old_memory for vcpu in self.vcpus.values()):
            self.changed.wait(0.01)

    def memory_written(self, gpa: int, size: int) -> None:
        """Have each CPU translate again what user space wrote, before it executes that."""
        with self.lock:
            at = self.slots.host_address(gpa, size)
            if at is not None:
                for vcpu in self.vcpus.values():
                    vcpu.code_written(at, size)

    # Ports

    def port_in(self, port: int, size: int) -> int | None:
        """Read a port of the kernel's own devices; None for all others."""
        if self.chip is not None and port in _PIC_PORTS:
            with self.lock:
                return self.chip.pic.port_read(port, size)
        if self.pit is not None and port in self.pit.ports:
            with self.lock:
                return self.pit.port_read(port, size)
        return None

    def port_out(self, port: int, size: int, value: int) -> bool:
        """Write to a port of the kernel's own devices; False for all others."""
        if self.pit is not None and port in self.pit.ports:
            with self.lock:
                self.pit.port_write(port, size, value)
                self.timers.rearm()
            return True
        self.clock.disturbed()
        if self.chip is not None and port in _PIC_PORTS:
            with self.lock:
                self.chip.pic.port_write(port, size, value)
                self.timers.rearm()
            return True
        return False

    # Running and sleeping; under the lock

    def begin(self) -> None:
        """A vCPU is about to run for the first time; somebody has to watch the time from now on."""
        self.active += 1
        self.clock.is_master = True
        if not self.timers.watched:
            self.timers.watched = True
            Ticker(self.changed, self._look).start()
        self.changed.notify_all()

    def end(self) -> None:
        """A vCPU that has begun will not run again."""
        self.active -= 1
        self._have_sleepers_look()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """A vCPU sleeps."""
        self.active -= 1
        try:
            yield
        finally:
            self.active += 1
            self.changed.notify_all()

    def woke_up(self) -> None:
        """A vCPU sleeps no longer."""
        for vcpu in self.vcpus.values():
            vcpu.stirred()

    def report_sleep(self) -> None:
        """
        If nothing here can wake any vCPU any more, have the KVM_RUN of each return, once.

        KVM_RUN returns like that whenever a signal comes, so user space has to expect it. It may
        look at its vCPUs then, and need not poll for a guest that has halted for good.
        """
        vcpus = self.vcpus.values()
        if self.active or any(vcpu.wakes or not vcpu.sleeps_for_good for vcpu in vcpus):
            return
        for vcpu in vcpus:
            vcpu.let_out()

    def wait_for_change(self, vcpu: VmVcpu) -> None:
        """
        Let a vCPU sleep until another thread has something for it, or a timer is due.

        While another vCPU is active, it is the ticker that looks after the timers.
        """
        pause = _LOOK_FOR_SIGNALS if vcpu.looks_for_signals else _LONGEST_WAIT
        deadline = None if self.active else self.timers.next_deadline()
        if deadline is not None:
            if not any(each.wakes for each in self.vcpus.values()):
                self.clock.warp_to(deadline)
            pause = min(pause, (deadline - self.clock.now()) / 1e9)
        if pause > 0:
            vcpu.sleep(pause)

    def _have_sleepers_look(self) -> None:
        for vcpu in self.vcpus.values():
            vcpu.look_again()

    def _look(self) -> float | None:
        """Do what is due while vCPUs execute; see :class:`Ticker`."""
        if self.closed and not self.active:
            return None
        self.timers.armed = None
        if not self.active:
            self._have_sleepers_look()  # a timer may have been set meanwhile
            return _IDLE
        self.timers.run()
        self.execution.lend()
        contended = self.execution.contended
        vcpus = list(self.vcpus.values())
        again = sum(vcpu.remind(contended=contended) for vcpu in vcpus) > 0 or contended
        pause = _AGAIN if again else _LONGEST
        deadline = self.timers.armed = self.timers.next_deadline()
        if deadline is None:
            return pause
        return min(pause, max(deadline - self.clock.now(), 0) / 1e9)
