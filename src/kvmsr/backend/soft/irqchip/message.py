# SPDX-License-Identifier: Apache-2.0
"""
Interrupt messages
------------------

What goes from ICRs, I/O APIC pins and MSIs to the local APICs (SDM volume 3, 11.6 and 11.11).
"""

from typing import Final, NamedTuple

__all__ = (
    "EXTINT",
    "FIXED",
    "INIT",
    "LOWEST",
    "NMI",
    "REMOTE_READ",
    "SMI",
    "STARTUP",
    "Message",
)

FIXED, LOWEST, SMI, REMOTE_READ, NMI, INIT, STARTUP, EXTINT = range(8)
"""Delivery modes; KVM ends a HLT by REMOTE_READ, which it has no other use for."""

_LOGICAL: Final = 1 << 11


class Message(NamedTuple):
    """
    An interrupt message.

    :ivar dest: the destination, in the form of the sender's mode.
    :ivar wide: *dest* has 32 bits (x2APIC), not 8.
    """

    vector: int
    mode: int
    dest: int
    logical: bool
    level: bool
    level_triggered: bool
    wide: bool = False

    @classmethod
    def of_msi(cls, address: int, data: int) -> "Message":
        """Return the message that an MSI is."""
        return cls(
            data & 0xFF, data >> 8 & 7, address >> 12 & 0xFF, bool(address & 4),
            bool(data & 1 << 14), bool(data & 1 << 15),
        )  # fmt: skip

    @classmethod
    def of_icr(cls, icr: int, dest: int, *, wide: bool) -> "Message":
        """Return the message that an interrupt command is."""
        return cls(
            icr & 0xFF, icr >> 8 & 7, dest, bool(icr & _LOGICAL),
            bool(icr & 1 << 14), bool(icr & 1 << 15), wide,
        )  # fmt: skip

    @classmethod
    def of_pin(cls, entry: int) -> "Message":
        """Return the message that an I/O APIC's redirection entry sends."""
        level_triggered = bool(entry & 1 << 15)
        return cls(
            entry & 0xFF, entry >> 8 & 7, entry >> 56, bool(entry & _LOGICAL), True, level_triggered
        )
