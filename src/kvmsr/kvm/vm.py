# SPDX-License-Identifier: Apache-2.0
"""
The VM handle
-------------

A virtual machine: its memory, interrupt controllers, clock, MSR policy hooks, and vCPUs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvmsr.abi import (
    MSR_FILTER_DEFAULT_ALLOW,
    MSR_FILTER_DEFAULT_DENY,
    MSR_FILTER_MAX_MSRS,
    MSR_FILTER_MAX_RANGES,
    Cap,
    Chip,
    IoeventfdFlag,
    IrqfdFlag,
    MsrExitReason,
    MsrFilterFlag,
    Word,
    address_of,
    buffer,
    ioctls,
    vm,
)
from kvmsr.backend.memory import Memory
from kvmsr.backend.protocol import Backend, KeepsCode
from kvmsr.errors import UsageError
from kvmsr.kvm import stats
from kvmsr.kvm.handle import Handle, read_stats
from kvmsr.kvm.vcpu import Vcpu
from kvmsr.text import counted

__all__ = ("MsrFilterRange", "Vm")


@dataclass(frozen=True, slots=True)
class MsrFilterRange:
    """
    A range of the MSR filter.

    :ivar base: its first MSR.
    :ivar nmsrs: how many MSRs, 1 to 0x3000.
    :ivar flags: the directions it is for.
    :ivar bitmap: bit k (lowest first in each byte) is 1 where MSR *base* + k is KVM's own to
        handle, 0 where it is denied; missing bytes count as 0.
    """

    base: int
    nmsrs: int
    flags: MsrFilterFlag
    bitmap: bytes


class Vm(Handle):
    """The file descriptor of a virtual machine; :meth:`kvmsr.kvm.Kvm.create_vm` makes them."""

    def __init__(self, backend: Backend, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(backend, fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._slots: dict[int, tuple[int, memoryview]] = {}
        self._memory_written = backend.memory_written if isinstance(backend, KeepsCode) else None

    def close(self) -> None:
        """Close the VM; KVM ends it with the last of its vCPUs."""
        self._slots = {}
        super().close()

    def check_extension(self, cap: int) -> int:
        """Return what *cap* says for this VM; it may say more than on the system handle."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, int(cap))

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """Create vCPU *vcpu_id* (KVM_CREATE_VCPU); the number is also its APIC ID."""
        fd = self.ioctl(ioctls.KVM_CREATE_VCPU, vcpu_id, f"vCPU {vcpu_id}")
        try:
            size = self._xsave_size()
            return Vcpu(self.backend, fd, vcpu_id, self._vcpu_mmap_size, size, keep=self._slots)
        except BaseException:
            self.backend.close(fd)
            raise

    def _xsave_size(self) -> int:
        return self.check_extension(Cap.XSAVE2)

    # Memory

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory: Memory | None, flags: int = 0
    ) -> None:
        """
        Give the guest *memory* at *guest_phys_addr*, or take slot *slot* away (None).

        KVM maps the memory into the guest without asking this process again: it stays there, closed
        or not, until the slot is taken away, or this handle and its vCPUs are closed.
        """
        region = vm.UserspaceMemoryRegion(
            slot=slot,
            flags=flags,
            guest_phys_addr=guest_phys_addr,
            memory_size=len(memory) if memory else 0,
            userspace_addr=memory.address if memory else 0,
        )
        self.ioctl(
            ioctls.KVM_SET_USER_MEMORY_REGION,
            region,
            f"slot {slot}, {region.memory_size:#x} bytes at {guest_phys_addr:#x}",
        )
        if memory is None:
            self._slots.pop(slot, None)
        else:
            self._slots[slot] = (guest_phys_addr, memory.view[:])

    def slots(self) -> dict[int, tuple[int, memoryview]]:
        """Return guest-physical address and memory of each slot, by the slot's number."""
        return dict(self._slots)

    def memory_at(self, address: int, length: int) -> memoryview:
        """
        Return *length* bytes of guest-physical memory at *address*, writable.

        :raises UsageError: if they do not lie in one slot.
        """
        for base, memory in self._slots.values():
            offset = address - base
            if offset >= 0 and offset + length <= len(memory):
                return memory[offset : offset + length]
        raise UsageError(f"no memory slot holds {length:#x} bytes at {address:#x}")

    def memory_written(self, address: int, length: int) -> None:
        """
        Say that user space wrote to guest memory where code may lie, as a device does.

        A processor sees that by itself. A backend that translates code has to be told.
        """
        if self._memory_written is not None:
            self._memory_written(self.fd, address, length)

    def get_dirty_log(self, slot: int) -> bytes:
        """Return a bitmap of the slot's pages written since the last call (KVM_GET_DIRTY_LOG)."""
        bitmap = self._bitmap(slot)
        log = vm.DirtyLog(slot=slot, dirty_bitmap=address_of(bitmap))
        self.ioctl(ioctls.KVM_GET_DIRTY_LOG, log, f"slot {slot}")
        return bytes(bitmap)

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """
        Protect pages again whose bit in *bitmap* is set (KVM_CLEAR_DIRTY_LOG).

        :param first_page: of the slot, a multiple of 64, where bit 0 of *bitmap* is.
        :raises IoctlError: EINVAL, unless KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 was enabled.
        """
        size = (num_pages + 63) // 64 * 8
        pages = buffer(size, bitmap)
        clear = vm.ClearDirtyLog(slot, num_pages, first_page, address_of(pages))
        self.ioctl(ioctls.KVM_CLEAR_DIRTY_LOG, clear, f"slot {slot}")

    def _bitmap(self, slot: int) -> Any:
        if slot not in self._slots:
            raise UsageError(f"there is no memory slot {slot}")
        pages = len(self._slots[slot][1]) // 4096
        return buffer((pages + 63) // 64 * 8)

    def set_tss_addr(self, address: int) -> None:
        """Reserve three pages for KVM's real-mode emulation on Intel (KVM_SET_TSS_ADDR)."""
        self.ioctl(ioctls.KVM_SET_TSS_ADDR, address)

    def set_identity_map_addr(self, address: int) -> None:
        """Reserve a page for an identity map (KVM_SET_IDENTITY_MAP_ADDR), before any vCPU."""
        self.ioctl(ioctls.KVM_SET_IDENTITY_MAP_ADDR, Word(address))

    # Interrupts

    def create_irqchip(self) -> None:
        """Create the in-kernel 8259 pair, IOAPIC and local APICs, before any vCPU."""
        self.ioctl(ioctls.KVM_CREATE_IRQCHIP)

    def get_irqchip(self, chip: Chip) -> vm.Irqchip:
        """Return the state of one chip (KVM_GET_IRQCHIP)."""
        state = vm.Irqchip(chip_id=chip)
        self.ioctl(ioctls.KVM_GET_IRQCHIP, state)
        return state

    def set_irqchip(self, state: vm.Irqchip) -> None:
        """Set the state of the chip that *state* names (KVM_SET_IRQCHIP)."""
        self.ioctl(ioctls.KVM_SET_IRQCHIP, state)

    def create_pit2(self, flags: int = 0) -> None:
        """Create the in-kernel 8254 (KVM_CREATE_PIT2), after the irqchip."""
        self.ioctl(ioctls.KVM_CREATE_PIT2, vm.PitConfig(flags=flags))

    def get_pit2(self) -> vm.PitState2:
        """Return the 8254's state (KVM_GET_PIT2)."""
        state = vm.PitState2()
        self.ioctl(ioctls.KVM_GET_PIT2, state)
        return state

    def set_pit2(self, state: vm.PitState2) -> None:
        """Set the 8254's state (KVM_SET_PIT2)."""
        self.ioctl(ioctls.KVM_SET_PIT2, state)

    def reinject_control(self, pit_reinject: bool) -> None:
        """Say whether PIT ticks that the guest missed are given later (KVM_REINJECT_CONTROL)."""
        self.ioctl(ioctls.KVM_REINJECT_CONTROL, vm.ReinjectControl(pit_reinject=pit_reinject))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Say which vCPU starts running (KVM_SET_BOOT_CPU_ID), before any vCPU exists."""
        self.ioctl(ioctls.KVM_SET_BOOT_CPU_ID, vcpu_id)

    def irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line *gsi* (KVM_IRQ_LINE)."""
        self.ioctl(ioctls.KVM_IRQ_LINE, vm.IrqLevel(irq=gsi, level=level), f"GSI {gsi}")

    def irqfd(self, fd: int, gsi: int, *, assign: bool = True, resample_fd: int = -1) -> None:
        """
        Let each signal of eventfd *fd* raise *gsi*, or stop that (KVM_IRQFD).

        :param resample_fd: an eventfd that is signalled when the guest ends a level interrupt.
        """
        irqfd = vm.Irqfd(fd=fd, gsi=gsi, flags=0 if assign else IrqfdFlag.DEASSIGN)
        if resample_fd >= 0:
            irqfd.flags |= IrqfdFlag.RESAMPLE
            irqfd.resamplefd = resample_fd
        self.ioctl(ioctls.KVM_IRQFD, irqfd, f"GSI {gsi}")

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        """
        Turn the guest's writes to *address* into signals of eventfd *fd* (KVM_IOEVENTFD).

        :param length: of the write: 1, 2, 4 or 8 bytes, or 0 for any.
        :param pio: a port, not guest-physical memory.
        :param datamatch: only writes of this value.
        """
        request = vm.Ioeventfd(addr=address, len=length, fd=fd)
        if pio:
            request.flags |= IoeventfdFlag.PIO
        if datamatch is not None:
            request.flags |= IoeventfdFlag.DATAMATCH
            request.datamatch = datamatch
        if not assign:
            request.flags |= IoeventfdFlag.DEASSIGN
        self.ioctl(ioctls.KVM_IOEVENTFD, request, f"{'port' if pio else 'address'} {address:#x}")

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt (KVM_SIGNAL_MSI); return 0 if the guest blocks it."""
        msi = vm.Msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
        return self.ioctl(ioctls.KVM_SIGNAL_MSI, msi)

    def set_gsi_routing(self, entries: Iterable[vm.IrqRoutingEntry]) -> None:
        """Replace the GSI routing table (KVM_SET_GSI_ROUTING)."""
        routes = list(entries)
        table = vm.irq_routing(len(routes))
        table.nr = len(routes)
        for slot, route in enumerate(routes):
            table.entries[slot] = route
        self.ioctl(ioctls.KVM_SET_GSI_ROUTING, table)

    # Time

    def get_clock(self) -> vm.ClockData:
        """Return kvmclock (KVM_GET_CLOCK)."""
        clock = vm.ClockData()
        self.ioctl(ioctls.KVM_GET_CLOCK, clock)
        return clock

    def set_clock(self, clock: vm.ClockData) -> None:
        """Set kvmclock (KVM_SET_CLOCK)."""
        self.ioctl(ioctls.KVM_SET_CLOCK, clock)

    # MSRs

    def enable_user_space_msr(self, reasons: MsrExitReason) -> None:
        """
        Say for which reasons MSR accesses come to user space (KVM_CAP_X86_USER_SPACE_MSR).

        The mask replaces the former one; 0 turns the interface off. It may change at any time.
        """
        self.enable_cap(Cap.X86_USER_SPACE_MSR, int(reasons))

    def set_msr_filter(
        self, ranges: Sequence[MsrFilterRange] = (), *, default_deny: bool = False
    ) -> None:
        """
        Replace the MSR filter (KVM_X86_SET_MSR_FILTER); without ranges, take it away.

        A denied access raises #GP in the guest, or comes to user space if
        :meth:`enable_user_space_msr` asked for FILTER. The first range that holds the MSR for that
        direction decides; 0x800 to 0x8ff (x2APIC) can never be denied.

        :param default_deny: what holds for MSRs in no range; needs a range.
        :raises UsageError: for a filter that KVM does not take.
        """
        _check_filter(ranges, default_deny)
        request = vm.MsrFilter(
            flags=MSR_FILTER_DEFAULT_DENY if default_deny else MSR_FILTER_DEFAULT_ALLOW
        )
        bitmaps = []  # lifetime: KVM copies them during the call
        for slot, given in zip(request.ranges, ranges, strict=False):
            size = (given.nmsrs + 63) // 64 * 8  # KVM reads whole 64-bit words
            bitmap = buffer(size, given.bitmap)
            bitmaps.append(bitmap)
            slot.flags = given.flags
            slot.nmsrs = given.nmsrs
            slot.base = given.base
            slot.bitmap = address_of(bitmap)
        self.ioctl(ioctls.KVM_X86_SET_MSR_FILTER, request, counted(len(ranges), "range"))

    # Statistics

    def stats(self) -> dict[str, stats.Stat]:
        """Return KVM's counters for this VM (KVM_GET_STATS_FD)."""
        return read_stats(self)


def _check_filter(ranges: Sequence[MsrFilterRange], default_deny: bool) -> None:
    if len(ranges) > MSR_FILTER_MAX_RANGES:
        raise UsageError(
            f"an MSR filter of {len(ranges)} ranges: KVM takes {MSR_FILTER_MAX_RANGES} at most"
        )
    if default_deny and not ranges:
        raise UsageError("an MSR filter that denies by default needs a range: KVM insists")
    for given in ranges:
        if not 1 <= given.nmsrs <= MSR_FILTER_MAX_MSRS or given.flags not in (1, 2, 3):
            raise UsageError(
                f"MSR filter range at {given.base:#x}: {given.nmsrs} MSRs and flags"
                f" {given.flags:d}; KVM takes 1 to {MSR_FILTER_MAX_MSRS:#x} and READ, WRITE or both"
            )
        if not 0 <= given.base <= (1 << 32) - 1 - given.nmsrs:
            raise UsageError(
                f"MSR filter range at {given.base:#x} of {given.nmsrs:#x} MSRs reaches past"
                " 0xfffffffe: KVM would take it and never apply it"
            )
