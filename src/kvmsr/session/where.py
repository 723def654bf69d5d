# SPDX-License-Identifier: Apache-2.0
"""
Where a guest is
----------------
"""

from kvmsr.kvm import Vcpu, Vm
from kvmsr.kvm.callers import find_callers
from kvmsr.policy import Where

__all__ = ("locate",)


def locate(vcpu: Vcpu, vm: Vm, callers: int) -> Where:
    """
    Return where a vCPU's guest is. Call it in the vCPU's thread.

    :param callers: how many callers to look for, 0 to 8.
    :raises IoctlError: if KVM does not give the vCPU's registers.
    """
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    return Where(regs.rip, sregs.ss.dpl, *find_callers(vcpu, vm, regs, sregs, callers))
