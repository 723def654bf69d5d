# SPDX-License-Identifier: Apache-2.0
"""
Breakpoints on data
-------------------

The engine has none. While there are some, the guest executes one instruction at a time, and it is
seen whether that has touched what they are on (SDM volume 3, 18.2.4). That is slow.
"""

from typing import Final

from kvmsr.backend.soft.debugging import BS, DB, HARDWARE, SINGLESTEP
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("run_watched",)

_DR6_RESET: Final = 0xFFFF_0FF0


def run_watched(vcpu: Vcpu) -> None:
    """Run the guest for one instruction, and have its #DB, which is a trap, follow."""
    cpu, debugging = vcpu.cpu, vcpu.debugging
    places = {}
    for number, address, size, writes in debugging.watched:
        physical = cpu.translate(address)
        if physical is not None:
            places[number] = (physical, physical + size - 1, writes)
    cpu.watch(places)
    if not cpu.step():
        return
    if not cpu.touched:
        vcpu.skipped()
        return
    cpu.shadow = False
    if debugging.control & (HARDWARE | SINGLESTEP):
        step = BS if debugging.control & SINGLESTEP else 0
        debugging.exit(DB, _DR6_RESET | step | cpu.touched, debugging.dr7)
    else:
        debugging.note(cpu.touched)
        vcpu.queue_exception(DB, None)
