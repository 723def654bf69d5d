# SPDX-License-Identifier: Apache-2.0
"""
A CPU's memory
--------------

What a CPU sees of its VM's memory: the slots, and in front of them the pages of its local APIC and
of the I/O APIC.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Final

from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.irqchip import Ioapic, Lapic
from kvmsr.backend.soft.memory import Slots

__all__ = ("CpuMemory",)

_PAGE: Final = 0x1000
_LAST_PAGE: Final = (1 << 40) - _PAGE  # of the physical addresses that CPUID reports
_IOAPIC_PAGE: Final = 0xFEC0_0000
_LAST: Final = (1 << 64) - 1
_UNKNOWN: Final = -1
_MOST_WRITTEN: Final = 4096
_ALL: Final = (0, 0)
"""Stands for all memory where it is listed what was written."""

_Part = tuple[int, int, bool]
"""Size, address in this process, and whether it is writable."""


class CpuMemory:
    """The memory map of one CPU. It is brought up to date while the CPU does not run."""

    def __init__(self, cpu: Engine, slots: Slots) -> None:
        self._cpu, self._slots = cpu, slots
        self._generation = _UNKNOWN
        self._mapped: dict[int, _Part] = {}  # by guest-physical address
        self._written: list[tuple[int, int]] = []
        self._lapic: Lapic | None = None
        self._lapic_page: int | None = None
        self._map_lapic_at: Callable[[int], None] | None = None

    def add_apics(
        self, lapic: Lapic, ioapic: Ioapic, lock: threading.RLock, rearm: Callable[[], None]
    ) -> None:
        """
        Let the CPU see its local APIC and the I/O APIC.

        :param lock: held around accesses to them.
        :param rearm: called after a write: a timer may have been set.
        """

        def read_lapic(offset: int, size: int) -> int:
            with lock:
                return lapic.mmio_read(offset, size)

        def write_lapic(offset: int, size: int, value: int) -> None:
            with lock:
                lapic.mmio_write(offset, size, value)
                rearm()

        def read_ioapic(offset: int, size: int) -> int:
            with lock:
                return ioapic.mmio_read(offset, size)

        def write_ioapic(offset: int, size: int, value: int) -> None:
            with lock:
                ioapic.mmio_write(offset, size, value)
                rearm()

        self._lapic = lapic
        self._map_lapic_at = self._cpu.add_device(read_lapic, write_lapic)
        self._cpu.add_device(read_ioapic, write_ioapic)(_IOAPIC_PAGE)

    @property
    def is_current(self) -> bool:
        """Whether the CPU sees the slots, and the code in them, as they are."""
        return self._generation == self._slots.generation and not self._written

    def invalidate(self) -> None:
        """Have it brought up to date though the slots are the same."""
        self._generation = _UNKNOWN

    def written(self, host_address: int, size: int) -> None:
        """Note that user space wrote there, so that code has to be translated again."""
        if self._written and sum(self._written[-1]) == host_address:
            first, before = self._written.pop()
            host_address, size = first, before + size
        self._written.append((host_address, size))
        if len(self._written) > _MOST_WRITTEN:  # a CPU that sleeps for long
            self._written = [_ALL]

    def update(self) -> bool:
        """Bring it up to date; return whether there was something to do to the map."""
        if self._written:
            written, self._written = self._written, []
            if _ALL in written:
                self._cpu.flush_code()
                written.clear()
            for host_address, size in written:
                self._cpu.forget_code(host_address, size)
        if self.is_current:
            return False
        page = self._find_lapic_page()
        moves = self._lapic_page != page
        if moves and self._lapic_page is not None:
            self._cpu.unmap(self._lapic_page, _PAGE)
        hidden = _IOAPIC_PAGE if page is None else page  # page 0 is one, too
        self._map_slots(() if self._lapic is None else (_IOAPIC_PAGE, hidden))
        if moves and page is not None and self._map_lapic_at is not None:
            self._map_lapic_at(page)
        self._lapic_page = page
        self._generation = self._slots.generation
        return True

    def _find_lapic_page(self) -> int | None:
        """Return where the local APIC lies now, or None if the CPU does not see it."""
        page = None if self._lapic is None else self._lapic.apic_base & ~0xFFF
        return None if page is None or page == _IOAPIC_PAGE or page > _LAST_PAGE else page

    def _map_slots(self, devices: tuple[int, ...]) -> None:
        """Map what is wanted and unmap what is not; pages of *devices* hide memory."""
        wanted: dict[int, _Part] = {}
        for slot in self._slots:
            for first, end in _without(slot.address, slot.end, devices):
                place = slot.host_address + first - slot.address
                wanted[first] = (end - first, place, slot.writable)
        for address, part in list(self._mapped.items()):
            if wanted.get(address) != part:
                self._cpu.unmap(address, part[0])
                del self._mapped[address]
        for address, part in wanted.items():
            if address not in self._mapped:
                self._cpu.map(address, part[0], part[1], writable=part[2])
                self._mapped[address] = part
        self._cpu.watch_gaps(list(_gaps(wanted)))


def _without(first: int, end: int, pages: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for page in sorted(pages):
        if first <= page < end:
            if first < page:
                yield first, page
            first = page + _PAGE
    if first < end:
        yield first, end


def _gaps(mapped: dict[int, _Part]) -> Iterator[tuple[int, int]]:
    """Return where there is no writable memory, as first and last addresses."""
    at = 0
    for address in sorted(mapped):
        size, _, writable = mapped[address]
        if not writable:
            continue
        if at < address:
            yield at, address - 1
        at = address + size
    yield at, _LAST
