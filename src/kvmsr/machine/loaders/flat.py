# SPDX-License-Identifier: Apache-2.0
"""
Flat binaries
-------------

Raw code, loaded at 0x7c00 (16 bits, like a boot sector) or 1 MiB (32 and 64 bits) and started at
its first byte.
"""

from pathlib import Path
from typing import Final

from kvmsr.machine.cpustate import Mode, Start
from kvmsr.machine.layout import FLAT_16, FLAT_32, STACK
from kvmsr.machine.loaders.common import Guest, Loaded

__all__ = ("load_flat",)

_WHERE: Final = {
    Mode.REAL: (FLAT_16, FLAT_16),
    Mode.PROTECTED: (FLAT_32, STACK),
    Mode.LONG: (FLAT_32, STACK),
}


def load_flat(guest: Guest, path: Path, data: bytes, mode: int) -> Loaded:
    """Load *data*, to be started in *mode*: 16, 32 or 64."""
    address, stack = _WHERE[Mode(mode)]
    guest.put(address, data, f"flat binary {path}")
    return Loaded(f"flat {mode}-bit binary", Start(mode, address, {"rsp": stack}))
