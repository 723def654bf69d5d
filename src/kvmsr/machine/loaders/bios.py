# SPDX-License-Identifier: Apache-2.0
"""
Firmware
--------

A BIOS image ends at 4 GiB; its last 256 KiB also appear below 1 MiB.
"""

from typing import Final

from kvmsr.backend import Memory
from kvmsr.errors import ImageError
from kvmsr.machine.cpustate import Start
from kvmsr.machine.layout import FOUR_GIB
from kvmsr.machine.loaders.boot import Boot
from kvmsr.machine.loaders.common import Guest, Loaded, read_file

__all__ = ("load_bios",)

_SLOT: Final = 2
_LARGEST: Final = 8 << 20  # the test device is below
_SHADOWED: Final = 0x40000
_UNIT: Final = 0x10000
_MIB: Final = 1 << 20
_NOTE: Final = (
    "image {}: offered to the firmware; OVMF takes it, SeaBIOS only with --option-rom, QEMU's"
    " linuxboot_dma.bin"
)


def load_bios(guest: Guest, boot: Boot) -> Loaded:
    """Load the firmware image; the vCPU starts at the reset vector."""
    path = boot.bios
    assert path is not None
    data = read_file(path, "BIOS image", _LARGEST)
    if len(data) % _UNIT:
        raise ImageError(
            f"BIOS image {path} may be incomplete: it has {len(data):,} bytes, which is not a"
            " multiple of 64 KiB"
        )
    rom = Memory(len(data))
    rom.view[:] = data
    # Not KVM_MEM_READONLY: firmware writes to its copy below 1 MiB, and there is no need to refuse
    # the rare writes up here.
    guest.vm.set_user_memory_region(_SLOT, FOUR_GIB - len(data), rom)
    tail = data[-_SHADOWED:]
    guest.put(_MIB - len(tail), tail, f"BIOS image {path}")
    notes = (_NOTE.format(boot.image),) if boot.image and not boot.option_rom else ()
    return Loaded(f"BIOS, {len(data) >> 10} KiB", Start(None), notes)
