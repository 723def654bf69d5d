# SPDX-License-Identifier: Apache-2.0
"""
The board
---------

All devices, connected to the bus.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from kvmsr.abi import Chip
from kvmsr.kvm import Vm
from kvmsr.kvm.exits import IoIn, IoOut, MmioRead, MmioWrite
from kvmsr.machine.board import small, testdev
from kvmsr.machine.board.bus import Bus
from kvmsr.machine.board.chipset import add_chipset
from kvmsr.machine.board.cmos import Cmos
from kvmsr.machine.board.fwcfg import FwCfg
from kvmsr.machine.board.pci import INTX_LINES, WINDOW_END, PciBus
from kvmsr.machine.board.uart import Uart
from kvmsr.machine.board.virtio import (
    DiskImage,
    VirtioBlock,
    VirtioConsole,
    VirtioDevice,
    VirtioPci,
)
from kvmsr.machine.layout import Layout

__all__ = ("COM1", "Board", "BoardEvents")

COM1 = 0x3F8
_COM1_IRQ = 4


@dataclass(frozen=True, slots=True)
class BoardEvents:
    """
    What the board calls when something happens.

    :ivar output: called with the bytes that the guest sends on its serial line.
    :ivar debug_output: called with the bytes that it writes to the debug console.
    :ivar debug_exit: called with the value that it writes to the debug exit.
    :ivar reset: called when it resets the machine, with the name of the device it used.
    :ivar power_off: called when it turns the machine off.
    :ivar note: called with a line that the user should read at the end.
    :ivar over: whether the run is over.
    """

    output: Callable[[bytes], None]
    debug_output: Callable[[bytes], None]
    debug_exit: Callable[[int], None]
    reset: Callable[[str], None]
    power_off: Callable[[], None]
    note: Callable[[str], None]
    over: Callable[[], bool]


class Board:
    """
    Devices on a bus. One access to a port is handled at a time; what decodes memory looks after
    itself, so that a device that takes long does not hold up other vCPUs.

    :ivar fwcfg: what firmware asks about the machine.
    :ivar pci: the PCI bus.
    :ivar power_management: what says where ACPI's registers are.
    :ivar uart: the serial line.
    :ivar line: where the guest takes input: the serial line, or the console that was added.
    """

    def __init__(self, vm: Vm, layout: Layout, cpus: int, events: BoardEvents) -> None:
        self._vm, self._events = vm, events
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # two vCPUs may use two lines
        self._disks = 0
        self.line: Uart | VirtioConsole
        self._bus = bus = Bus()
        self.line = self.uart = Uart(
            COM1, self._one_by_one(events.output), lambda level: vm.irq_line(_COM1_IRQ, level)
        )
        bus.add_ports(COM1, 8, self.uart)
        cmos = Cmos(layout.low_size, layout.high_size, cpus)
        bus.add_ports(0x70, 2, cmos)
        keyboard = small.KeyboardController(events.reset)
        bus.add_ports(0x60, 1, keyboard)
        bus.add_ports(0x64, 1, keyboard)
        bus.add_ports(0x92, 1, small.Port92(events.reset))
        console = small.DebugConsole(self._one_by_one(events.debug_output))
        bus.add_ports(0xE9, 1, console)
        bus.add_ports(0x402, 1, console)
        leave = small.DebugExit(events.debug_exit)
        bus.add_ports(0xF4, 4, leave, bytewise=False)
        bus.add_ports(0x501, 1, leave, bytewise=False)
        self.pci = pci = PciBus(events.reset, vm.irq_line)
        self.power_management = add_chipset(pci)
        bus.add_ports(0xCF8, 8, pci.ports, bytewise=False)
        bus.add_region(layout.low_size, WINDOW_END - layout.low_size, pci.memory)
        self.fwcfg = FwCfg(layout.size, cpus, layout.e820(), vm.memory_at)
        bus.add_ports(0x510, 12, self.fwcfg, bytewise=False)
        # The VM's clock: if time is virtual, the PM timer agrees with the guest's other timers.
        pm = small.AcpiPm(events.power_off, lambda: int(vm.get_clock().clock))
        bus.add_movable_ports(self.power_management.decodes, pm)
        bus.add_ports(testdev.PORT_BASE, 4, testdev.TestPort(), bytewise=False)
        bus.add_ports(
            testdev.IRQ_BASE, testdev.IRQ_COUNT, testdev.TestIrqLines(vm.irq_line), bytewise=False
        )
        bus.add_region(testdev.MEMORY_BASE, testdev.MEMORY_SIZE, testdev.TestMemory())

    def add_disk(self, image: DiskImage) -> None:
        """
        Add a disk, which Linux calls vda, vdb, and so on.

        :raises UsageError: if there are too many.
        """
        serial = f"kvmsr-{self._disks}"
        self._disks += 1
        self._add(VirtioBlock(image, serial, self._events.over, self._events.note))

    def add_console(self) -> None:
        """Add a console, which Linux calls hvc0, and take the guest's input there."""
        self.line = console = VirtioConsole(self._one_by_one(self._events.output))
        self._add(console)

    def _one_by_one(self, output: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def put_out(data: bytes) -> None:
            with self._writing:
                output(data)

        return put_out

    def _add(self, device: VirtioDevice) -> None:
        self.pci.add_next(VirtioPci(device, self._vm, self._events.note))

    def set_up(self) -> None:
        """Do what firmware does before it starts a system: place what the PCI bus has."""
        self.pci.assign()
        self.power_management.set_up()
        chip = self._vm.get_irqchip(Chip.PIC_SLAVE)
        chip.chip.pic.elcr |= sum(1 << line % 8 for line in INTX_LINES)  # they are level-triggered
        self._vm.set_irqchip(chip)

    def serve(self, exit_: IoIn | IoOut | MmioRead | MmioWrite) -> None:
        """Handle a port or memory exit."""
        if isinstance(exit_, MmioRead):
            self._bus.memory_read(exit_)
        elif isinstance(exit_, MmioWrite):
            self._bus.memory_write(exit_)
        else:
            with self._lock:
                if isinstance(exit_, IoOut):
                    self._bus.port_out(exit_)
                else:
                    self._bus.port_in(exit_)
