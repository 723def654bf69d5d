# SPDX-License-Identifier: Apache-2.0
"""
Capabilities
------------

What KVM_CHECK_EXTENSION says: what is not here says 0.
"""

from typing import Final

from kvmsr.abi import Cap, GuestDbg, Quirk, SyncReg
from kvmsr.backend.soft.profile import Profile

__all__ = ("MAX_VCPUS", "MAX_VCPU_IDS", "QUIRKS", "check_extension")

MAX_VCPUS: Final = 8
MAX_VCPU_IDS: Final = 255
"""Numbers of vCPUs, which are local APICs' numbers, are below this."""

QUIRKS: Final = sum(Quirk)
"""Those that can be disabled. CD_NW_CLEARED, about caching, shows nowhere here."""

_VALUES: Final[dict[int, int]] = {
    Cap.IRQCHIP: 1, Cap.HLT: 1, Cap.USER_MEMORY: 1, Cap.SET_TSS_ADDR: 1, Cap.EXT_CPUID: 1,
    Cap.NR_VCPUS: MAX_VCPUS, Cap.MAX_VCPUS: MAX_VCPUS, Cap.MAX_VCPU_ID: MAX_VCPU_IDS,
    Cap.NR_MEMSLOTS: 32764, Cap.DESTROY_MEMORY_REGION_WORKS: 1, Cap.JOIN_MEMORY_REGIONS_WORKS: 1,
    Cap.MP_STATE: 1, Cap.USER_NMI: 1, Cap.SET_GUEST_DEBUG: 1,
    Cap.REINJECT_CONTROL: 1, Cap.IRQ_ROUTING: 4096, Cap.MCE: 32, Cap.PIT2: 1,
    Cap.SET_BOOT_CPU_ID: 1, Cap.PIT_STATE2: 1, Cap.SET_IDENTITY_MAP_ADDR: 1, Cap.ADJUST_CLOCK: 0xE,
    Cap.VCPU_EVENTS: 1, Cap.DEBUGREGS: 1, Cap.XSAVE: 1, Cap.GET_TSC_KHZ: 1,
    Cap.TSC_DEADLINE_TIMER: 1,
    Cap.SYNC_REGS: int(SyncReg.REGS | SyncReg.SREGS | SyncReg.EVENTS),
    Cap.SIGNAL_MSI: 1, Cap.READONLY_MEM: 1, Cap.ENABLE_CAP: 1, Cap.ENABLE_CAP_VM: 1,
    Cap.CHECK_EXTENSION_VM: 1, Cap.IMMEDIATE_EXIT: 1, Cap.GET_MSR_FEATURES: 1,
    Cap.MSR_PLATFORM_INFO: 1, Cap.X86_USER_SPACE_MSR: 1, Cap.X86_MSR_FILTER: 1,
    Cap.ENFORCE_PV_FEATURE_CPUID: 1, Cap.SREGS2: 1, Cap.INTERNAL_ERROR_DATA: 1,
    Cap.DISABLE_QUIRKS: 1, Cap.DISABLE_QUIRKS2: QUIRKS, Cap.SET_GUEST_DEBUG2: sum(GuestDbg),
}  # fmt: skip


_HYPERV: Final = frozenset(
    (
        Cap.HYPERV, Cap.HYPERV_VAPIC, Cap.HYPERV_SPIN, Cap.HYPERV_TIME, Cap.HYPERV_SYNIC,
        Cap.HYPERV_SYNIC2, Cap.HYPERV_VP_INDEX, Cap.HYPERV_TLBFLUSH, Cap.HYPERV_SEND_IPI,
        Cap.HYPERV_CPUID, Cap.SYS_HYPERV_CPUID, Cap.HYPERV_ENFORCE_CPUID,
    )
)  # fmt: skip


def check_extension(profile: Profile, cap: int) -> int:
    """Return what the modelled kernel says of capability *cap*."""
    if cap in _HYPERV:
        return int(profile.hyperv)
    return _VALUES.get(cap, 0) if profile.has_capability(cap) else 0
