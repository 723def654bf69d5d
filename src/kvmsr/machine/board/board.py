# SPDX-License-Identifier: Apache-2.0
"""
The board
---------

All devices, connected to the bus.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from kvmsr.kvm import Vm
from kvmsr.kvm.exits import IoIn, IoOut, MmioRead, MmioWrite
from kvmsr.machine.board import small, testdev
from kvmsr.machine.board.bus import Bus
from kvmsr.machine.board.cmos import Cmos
from kvmsr.machine.board.fwcfg import FwCfg
from kvmsr.machine.board.uart import Uart
from kvmsr.machine.layout import Layout

__all__ = ("Board", "BoardEvents")

_COM1 = 0x3F8
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
    """

    output: Callable[[bytes], None]
    debug_output: Callable[[bytes], None]
    debug_exit: Callable[[int], None]
    reset: Callable[[str], None]
    power_off: Callable[[], None]


class Board:
    """
    Devices on a bus. One exit is handled at a time.

    :ivar uart: the serial line, which takes input.
    """

    def __init__(self, vm: Vm, layout: Layout, cpus: int, events: BoardEvents) -> None:
        self._lock = threading.Lock()
        self._bus = bus = Bus()
        self.uart = Uart(_COM1, events.output, lambda level: vm.irq_line(_COM1_IRQ, level))
        bus.add_ports(_COM1, 8, self.uart)
        cmos = Cmos(layout.low_size, layout.high_size, cpus)
        bus.add_ports(0x70, 2, cmos)
        keyboard = small.KeyboardController(events.reset)
        bus.add_ports(0x60, 1, keyboard)
        bus.add_ports(0x64, 1, keyboard)
        bus.add_ports(0x92, 1, small.Port92(events.reset))
        console = small.DebugConsole(events.debug_output)
        bus.add_ports(0xE9, 1, console)
        bus.add_ports(0x402, 1, console)
        leave = small.DebugExit(events.debug_exit)
        bus.add_ports(0xF4, 4, leave, bytewise=False)
        bus.add_ports(0x501, 1, leave, bytewise=False)
        bus.add_ports(0xCF8, 8, small.PciConfig(events.reset), bytewise=False)
        fwcfg = FwCfg(layout.low_size + layout.high_size, cpus, layout.e820(), vm.memory_at)
        bus.add_ports(0x510, 12, fwcfg, bytewise=False)
        # The VM's clock: if time is virtual, the PM timer agrees with the guest's other timers.
        pm = small.AcpiPm(events.power_off, lambda: int(vm.get_clock().clock))
        bus.add_ports(pm.BASE, pm.LENGTH, pm, bytewise=False)
        bus.add_ports(testdev.PORT_BASE, 4, testdev.TestPort(), bytewise=False)
        bus.add_ports(
            testdev.IRQ_BASE, testdev.IRQ_COUNT, testdev.TestIrqLines(vm.irq_line), bytewise=False
        )
        bus.add_region(testdev.MEMORY_BASE, testdev.MEMORY_SIZE, testdev.TestMemory())

    def name(self, memory: bool, address: int) -> str:
        """Return the name of the device in memory or at a port, or ""."""
        return self._bus.name(memory, address)

    def serve(self, exit_: IoIn | IoOut | MmioRead | MmioWrite) -> None:
        """Handle a port or memory exit."""
        with self._lock:
            if isinstance(exit_, IoOut):
                self._bus.port_out(exit_)
            elif isinstance(exit_, IoIn):
                self._bus.port_in(exit_)
            elif isinstance(exit_, MmioRead):
                self._bus.memory_read(exit_)
            else:
                self._bus.memory_write(exit_)
