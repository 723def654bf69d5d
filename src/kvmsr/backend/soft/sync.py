# SPDX-License-Identifier: Apache-2.0
"""
Synchronised registers
----------------------

KVM_CAP_SYNC_REGS: registers that travel in the kvm_run page.
"""

from typing import TYPE_CHECKING

from kvmsr.abi import SyncReg
from kvmsr.backend.soft.events import get_events, set_events

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("load", "store")


def load(vcpu: "Vcpu") -> None:
    """Take over the groups that user space marked, and unmark them (sync_regs)."""
    run = vcpu.run
    dirty, regs = run.kvm_dirty_regs, run.s.regs
    if dirty & SyncReg.REGS:
        vcpu.set_regs(regs.regs)
        run.kvm_dirty_regs &= ~int(SyncReg.REGS)
    if dirty & SyncReg.SREGS:
        vcpu.set_sregs(regs.sregs)
        run.kvm_dirty_regs &= ~int(SyncReg.SREGS)
    if dirty & SyncReg.EVENTS:
        set_events(vcpu, regs.events)
        run.kvm_dirty_regs &= ~int(SyncReg.EVENTS)


def store(vcpu: "Vcpu") -> None:
    """Leave the groups that user space asked for (store_regs)."""
    valid, regs = vcpu.run.kvm_valid_regs, vcpu.run.s.regs
    if valid & SyncReg.REGS:
        vcpu.get_regs(regs.regs)
    if valid & SyncReg.SREGS:
        vcpu.get_sregs(regs.sregs)
    if valid & SyncReg.EVENTS:
        get_events(vcpu, regs.events)
