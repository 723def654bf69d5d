# SPDX-License-Identifier: Apache-2.0
"""
Synchronised registers
----------------------

KVM_CAP_SYNC_REGS: registers that travel in the kvm_run page.
"""

from kvmsr.abi import SyncReg
from kvmsr.backend.soft import structs
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("load", "store")


def load(vcpu: Vcpu) -> None:
    """Take over the groups that user space marked, and unmark them (sync_regs)."""
    run = vcpu.run
    dirty, regs = run.kvm_dirty_regs, run.s.regs
    if dirty & SyncReg.REGS:
        structs.set_regs(vcpu, regs.regs)
        run.kvm_dirty_regs &= ~int(SyncReg.REGS)
    if dirty & SyncReg.SREGS:
        structs.set_sregs(vcpu, regs.sregs)
        run.kvm_dirty_regs &= ~int(SyncReg.SREGS)
    if dirty & SyncReg.EVENTS:
        structs.set_events(vcpu, regs.events)
        run.kvm_dirty_regs &= ~int(SyncReg.EVENTS)


def store(vcpu: Vcpu) -> None:
    """Leave the groups that user space asked for (store_regs)."""
    valid, regs = vcpu.run.kvm_valid_regs, vcpu.run.s.regs
    if valid & SyncReg.REGS:
        structs.get_regs(vcpu, regs.regs)
    if valid & SyncReg.SREGS:
        structs.get_sregs(vcpu, regs.sregs)
    if valid & SyncReg.EVENTS:
        structs.get_events(vcpu, regs.events)
