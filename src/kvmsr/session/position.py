# SPDX-License-Identifier: Apache-2.0
"""
Where vCPUs were
----------------

Where each vCPU was when the run ended, and what it last asked its VMM for. The JSON form is a
contract.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ("LastAccess", "Position")


@dataclass(frozen=True, slots=True)
class LastAccess:
    """
    The last port or memory access of a vCPU that left KVM.

    :ivar address: the port, or the guest-physical address.
    :ivar write: whether the guest wrote.
    :ivar size: its width in bytes: 1, 2 or 4, and in memory also 8.
    :ivar value: what was written or read; the last one, if an INS or OUTS had several.
    :ivar device: who answered it, such as ``uart``, or "" if there is no device.
    """

    address: int
    write: bool
    size: int
    value: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "address": f"{self.address:#x}",
            "op": "write" if self.write else "read",
            "size": self.size,
            "value": f"{self.value:#x}",
            "device": self.device,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """
    Where a vCPU was.

    :ivar vcpu: its number.
    :ivar problem: why the rest is not known; "" if it is.
    :ivar rip: RIP, without the segment's base.
    :ivar linear: the linear address of the instruction.
    :ivar symbol: the guest's function there, such as ``default_idle+0xf``; "" if it is not known.
    :ivar mode: ``real``, ``virtual-8086``, ``protected`` or ``long``.
    :ivar bits: the width of the code segment: 16, 32 or 64.
    :ivar cpl: the privilege level, 0 to 3.
    :ivar state: ``running``, ``halted``, ``waits for INIT`` or ``waits for SIPI``.
    :ivar interrupts: whether RFLAGS.IF is set.
    :ivar port: its last port access; None if there was none.
    :ivar memory: its last access to memory that is no RAM; None if there was none.
    """

    vcpu: int
    problem: str = ""
    rip: int = 0
    linear: int = 0
    symbol: str = ""
    mode: str = ""
    bits: int = 0
    cpl: int = 0
    state: str = ""
    interrupts: bool = False
    port: LastAccess | None = None
    memory: LastAccess | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; what is not known is left out."""
        known = {
            "rip": f"{self.rip:#x}",
            "linear": f"{self.linear:#x}",
            "symbol": self.symbol,
            "mode": self.mode,
            "bits": self.bits,
            "cpl": self.cpl,
            "state": self.state,
            "interrupts": self.interrupts,
        }
        return {
            "vcpu": self.vcpu,
            **({"problem": self.problem} if self.problem else known),
            "port": None if self.port is None else self.port.as_dict(),
            "memory": None if self.memory is None else self.memory.as_dict(),
        }
