# SPDX-License-Identifier: Apache-2.0
"""
A VM of the kernel's
--------------------

What struct kvm is: memory slots, vCPUs, interrupt controllers, and the switches of the MSR path.
Its ioctls are in ``vm_ioctls``.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from kvmsr.abi import Mp
from kvmsr.backend.soft.clock import Clock
from kvmsr.backend.soft.execution import Execution
from kvmsr.backend.soft.irqchip import IrqChip, Pit
from kvmsr.backend.soft.memory import Slots
from kvmsr.backend.soft.msr.filter import MsrFilter
from kvmsr.backend.soft.profile import Profile
from kvmsr.backend.soft.ticker import Ticker

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("Vm",)

TSC_KHZ: Final = 1_000_000

_LAST_PAGE: Final = (1 << 40) - 0x1000  # of the physical addresses that CPUID tells of
_IOAPIC_PAGE: Final = 0xFEC0_0000
_LONGEST_WAIT: Final = 0.5
_LOOK_FOR_SIGNALS: Final = 0.01
_PIC_PORTS: Final = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)


class Vm:
    """
    One VM.

    :ivar lock: held around everything that devices and vCPUs share.
    :ivar changed: on that lock; told when something may be of interest to another thread.
    :ivar active: how many vCPUs have begun to run and do not sleep. While one is out of KVM_RUN its
        time goes on.
    """

    kind = "vm"

    def __init__(self, profile: Profile, *, real_time: bool) -> None:
        self.profile: Profile = profile
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.clock = Clock(TSC_KHZ, real_time=real_time)
        self.slots = Slots()
        self.execution = Execution(self)
        self.vcpus: dict[int, Vcpu] = {}
        self.chip: IrqChip | None = None
        self.pit: Pit | None = None
        self.boot_cpu = 0
        self.user_space_msr_mask = 0
        self.msr_filter: MsrFilter | None = None
        self.guest_can_read_platform_info = True
        self.pending_init: set[int] = set()
        self.pending_sipi: set[int] = set()
        self.active = 0
        self.clock_offset = 0
        self.closed = False
        self._ticker: Ticker | None = None

    @property
    def irqchip_in_kernel(self) -> bool:
        """Whether KVM_CREATE_IRQCHIP was done."""
        return self.chip is not None

    def close(self) -> None:
        """End; the vCPUs that are still open keep what they need."""
        with self.lock:
            self.closed = True
            self.changed.notify_all()

    # Memory

    def host_address(self, gpa: int, size: int) -> int | None:
        """Return where guest-physical memory lies in this process, or None where there is none."""
        return self.slots.host_address(gpa, size)

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write to guest-physical memory; return whether it is there."""
        return self.slots.write(gpa, data)

    def update_memory(self, vcpu: "Vcpu") -> None:
        """Bring a CPU's memory map up to date; it must not be running."""
        if vcpu.memory_generation == self.slots.generation:
            return
        page = self._lapic_page(vcpu)
        moves = vcpu.lapic_page != page
        if moves and vcpu.lapic_page is not None:
            vcpu.cpu.unmap(vcpu.lapic_page, 0x1000)
        hidden = _IOAPIC_PAGE if page is None else page  # page 0 is one, too
        devices = () if vcpu.lapic is None else (_IOAPIC_PAGE, hidden)
        self.slots.apply(vcpu.cpu, vcpu.mapped, devices)
        if moves and page is not None and vcpu.map_lapic_at is not None:
            vcpu.map_lapic_at(page)
        vcpu.lapic_page = page
        vcpu.memory_generation = self.slots.generation
        self.changed.notify_all()

    def _lapic_page(self, vcpu: "Vcpu") -> int | None:
        """Return where a vCPU's local APIC lies in its memory, or None."""
        page = None if vcpu.lapic is None else vcpu.lapic.apic_base & ~0xFFF
        return None if page is None or page == _IOAPIC_PAGE or page > _LAST_PAGE else page

    def memory_changed(self) -> None:
        """Wait until no CPU uses memory that is no longer there."""
        for vcpu in self.vcpus.values():
            vcpu.attend()
        while any(
            vcpu.cpu.running and vcpu.memory_generation != self.slots.generation
            for vcpu in self.vcpus.values()
        ):
            self.changed.wait(0.01)

    def map_lapic(self, vcpu: "Vcpu") -> None:
        """Make a CPU's local APIC known to it, and let it see the I/O APIC."""
        assert vcpu.lapic is not None and self.chip is not None
        lapic, ioapic, lock = vcpu.lapic, self.chip.ioapic, self.lock

        def read_lapic(offset: int, size: int) -> int:
            with lock:
                return lapic.mmio_read(offset, size)

        def write_lapic(offset: int, size: int, value: int) -> None:
            with lock:
                lapic.mmio_write(offset, size, value)
                self.rearm()

        def read_ioapic(offset: int, size: int) -> int:
            with lock:
                return ioapic.mmio_read(offset, size)

        def write_ioapic(offset: int, size: int, value: int) -> None:
            with lock:
                ioapic.mmio_write(offset, size, value)
                self.rearm()

        vcpu.map_lapic_at = vcpu.cpu.add_device(read_lapic, write_lapic)
        vcpu.cpu.add_device(read_ioapic, write_ioapic)(_IOAPIC_PAGE)

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
                self.rearm()
            return True
        self.clock.disturbed()
        if self.chip is not None and port in _PIC_PORTS:
            with self.lock:
                self.chip.pic.port_write(port, size, value)
                self.rearm()
            return True
        return False

    # Time

    def next_deadline(self) -> int | None:
        """Return when the next timer is due, or None."""
        pit = self.pit.deadline if self.pit is not None else None
        deadlines = [vcpu.lapic.deadline for vcpu in self.vcpus.values() if vcpu.lapic is not None]
        return min((each for each in (pit, *deadlines) if each is not None), default=None)

    def run_timers(self) -> None:
        """Let the timers that are due do what they do."""
        now = self.clock.now()
        if self.pit is not None and self.pit.deadline is not None and self.pit.deadline <= now:
            self.pit.expire(now)
        for vcpu in self.vcpus.values():
            lapic = vcpu.lapic
            if lapic is not None and lapic.deadline is not None and lapic.deadline <= now:
                lapic.expire(now)

    def rearm(self) -> None:
        """A timer may have been set."""
        deadline = self.next_deadline()
        if deadline is None:
            return
        if deadline <= self.clock.now():
            self.run_timers()  # it was set to the past: that is over at once
        elif self._ticker is not None and self._ticker.is_late(deadline):
            self.changed.notify_all()

    def begin(self, vcpu: "Vcpu") -> None:
        """A vCPU is about to run for the first time; somebody has to watch the time from now on."""
        with self.lock:
            vcpu.has_begun = True
            self.active += 1
            if self._ticker is None:
                self._ticker = Ticker(self)
                self._ticker.start()
            self.changed.notify_all()

    def leave(self, vcpu: "Vcpu") -> None:
        """A vCPU is no more."""
        with self.lock:
            del self.vcpus[vcpu.id]
            self.active -= vcpu.has_begun

    # vCPUs

    def wants(self, vcpu: "Vcpu") -> bool:
        """Return whether a vCPU that runs has to come out of the guest for a moment."""
        return (
            vcpu.memory_generation != self.slots.generation
            or vcpu.id in self.pending_init
            or vcpu.id in self.pending_sipi
            or self.execution.contended
        )

    def accept_events(self, vcpu: "Vcpu") -> None:
        """Do the INIT and start-up IPIs that wait for a vCPU (kvm_apic_accept_events)."""
        if vcpu.id in self.pending_init:
            self.pending_init.discard(vcpu.id)
            vcpu.reset_by_init()
            vcpu.mp_state = Mp.RUNNABLE if vcpu.id == self.boot_cpu else Mp.INIT_RECEIVED
        if vcpu.id in self.pending_sipi:
            self.pending_sipi.discard(vcpu.id)
            if vcpu.mp_state == Mp.INIT_RECEIVED:
                vcpu.start_at(vcpu.sipi_vector)
                vcpu.mp_state = Mp.RUNNABLE

    @contextmanager
    def idle(self, _vcpu: "Vcpu") -> Iterator[None]:
        """A vCPU sleeps; under the lock."""
        self.active -= 1
        try:
            yield
        finally:
            self.active += 1
            self.changed.notify_all()

    def _wakes(self, vcpu: "Vcpu") -> bool:
        """Return whether a vCPU that sleeps has what ends that: its thread has yet to see it."""
        if vcpu.id in self.pending_init or vcpu.id in self.pending_sipi:
            return True
        return vcpu.mp_state == Mp.HALTED and vcpu.runnable()

    def wait_for_change(self) -> None:
        """Sleep until another thread has something, or a timer is due; under the lock."""
        deadline = self.next_deadline()
        if deadline is None:
            masked = any(vcpu.masked is not None for vcpu in self.vcpus.values())
            self.changed.wait(_LOOK_FOR_SIGNALS if masked else _LONGEST_WAIT)
            return
        if not self.active and not any(map(self._wakes, self.vcpus.values())):
            self.clock.warp_to(deadline)
        left = deadline - self.clock.now()
        if left > 0:
            self.changed.wait(left / 1e9)
