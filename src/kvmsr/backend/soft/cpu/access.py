# SPDX-License-Identifier: Apache-2.0
"""
Between the engine and its client
---------------------------------

The accesses that nobody inside answers, and who drives an engine.
"""

from typing import Protocol

__all__ = ("Client", "MemoryAccess", "PortAccess")


class PortAccess:
    """A port access that nobody in the kernel answers; the CPU is before the instruction."""

    __slots__ = ("length", "port", "size", "value", "write")

    def __init__(self, write: bool, port: int, size: int, value: int) -> None:
        self.write, self.port, self.size, self.value = write, port, size, value
        self.length = 0


class MemoryAccess:
    """An access to no memory; the CPU is before the instruction. *write* None: fetching it."""

    __slots__ = ("address", "size", "value", "write")

    def __init__(self, write: bool | None, address: int, size: int, value: int) -> None:
        self.write, self.address, self.size, self.value = write, address, size, value


class Client(Protocol):
    """Who drives an engine: the vCPU."""

    def exit(self, code: int, info: int) -> bool:
        """Handle an intercept; return whether the guest goes on at once."""

    def port_in(self, port: int, size: int) -> int | None:
        """Return what *port* reads, or None where that is not known yet."""

    def port_out(self, port: int, size: int, value: int) -> bool:
        """Write to *port*; return whether that is all."""

    def syscall(self) -> None:
        """Do a SYSCALL; the engine adds the instruction's length to RIP afterwards."""

    def invalid(self) -> bool:
        """Handle an instruction that the engine does not know; False: stop."""
