# SPDX-License-Identifier: Apache-2.0
"""
Exits
-----

What user space has to hear of before the guest goes on: KVM_EXIT_HYPERV for the SynIC and the
synthetic debugger, KVM_EXIT_SYSTEM_EVENT for the end that a guest says it has come to.
"""

from typing import Final

from kvmsr.abi import SystemEvent
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("exit_asked",)

_DEBUGGER: Final = (0x4000_00F1, 0x4000_00F5)
_EVENTS: Final = {"crash": SystemEvent.CRASH, "reset": SystemEvent.RESET}


def exit_asked(vcpu: Vcpu) -> None:
    """Write what :attr:`HypervVcpu.asked` says to the kvm_run page."""
    asked, vcpu.hyperv.asked = vcpu.hyperv.asked, None
    if isinstance(asked, str):
        vcpu.page.exit_system_event(_EVENTS[asked])
    elif asked in _DEBUGGER:
        vcpu.page.exit_debugger(asked, vcpu.vm.hyperv.debugger)
        if asked == _DEBUGGER[0]:
            vcpu.complete_emulation = _take_status
    elif asked is not None:
        vcpu.page.exit_synic(asked, vcpu.hyperv.synic)


def _take_status(vcpu: Vcpu) -> bool:
    vcpu.vm.hyperv.debugger.status = vcpu.run.exit.hyperv.u.syndbg.status
    return True
