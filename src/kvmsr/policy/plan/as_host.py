# SPDX-License-Identifier: Apache-2.0
"""
KVM asked as the host
---------------------

If a rule takes an access away from KVM and then leaves it to KVM after all, KVM can only be asked
by KVM_GET_MSRS and KVM_SET_MSRS: on behalf of the host. For most MSRs that gives the same. Here are
those where it does not (arch/x86/kvm/x86.c, vmx/vmx.c and svm/svm.c of Linux 6.1 to 6.18: what
depends on ``host_initiated``, and what kvm_emulate_wrmsr() alone does).
"""

from typing import Final

from kvmsr.policy.access import Op

__all__ = ("differs",)

_DROPPED: Final = "the register changes, where a guest's write is dropped"
_REFUSED: Final = "it succeeds, where a guest gets #GP"
_CPUID: Final = "it does not depend on the guest's CPUID"

_ROWS: Final = (
    (0x10, 0x10, "", "KVM synchronizes the TSC with other vCPUs instead of shifting it"),
    (0x1B, 0x1B, "", "transitions between xAPIC and x2APIC are not checked"),
    (0x34, 0x34, "", _REFUSED),
    (0x3B, 0x3B, "", "the TSC does not move with it"),
    (0x8B, 0x8B, "", _DROPPED),
    (0x9E, 0x9E, _REFUSED, _REFUSED),
    (0xCE, 0xCE, "it succeeds even if KVM_CAP_MSR_PLATFORM_INFO is off", _REFUSED),
    (0x10A, 0x10A, _CPUID, _REFUSED),
    (0x17B, 0x17B, _REFUSED, _REFUSED),
    (0x1A0, 0x1A0, "", "bits 11 and 12 change, which a guest can only read"),
    (0x345, 0x345, _CPUID, _REFUSED),
    (0x400, 0x47F, "", "MCi_STATUS takes any value, where a guest may only write 0"),
    (0x480, 0x491, "it succeeds without VMX in the guest's CPUID", _REFUSED),
    (0xDA0, 0xDA0, _CPUID, _CPUID),
    (0xC0000080, 0xC0000080, "", "neither CPUID nor the paging mode is checked"),
)


def differs(op: Op, first: int, last: int) -> str:
    """Return what is different for the host, for accesses to MSRs *first* to *last*, or ""."""
    found = (
        reads if op is Op.READ else writes
        for low, high, reads, writes in _ROWS if low <= last and first <= high
    )  # fmt: skip
    return "; ".join(dict.fromkeys(filter(None, found)))
