# SPDX-License-Identifier: Apache-2.0
"""
MSR state
---------

What KVM keeps of a vCPU's MSRs, apart from those that the CPU or the local APIC holds.
"""

from typing import Final

from kvmsr.backend.soft.profile import Profile

__all__ = ("HOST_ARCH_CAPABILITIES", "MAX_BANKS", "MsrState")

MAX_BANKS: Final = 32
"""KVM_MAX_MCE_BANKS."""

HOST_ARCH_CAPABILITIES: Final = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6
"""ARCH_CAPABILITIES: RDCL_NO, SSB_NO, MDS_NO and PSCHANGE_MC_NO."""

_MISC_ENABLE, _PLATFORM_INFO, _UCODE_REV, _POLL_CONTROL = 0x1A0, 0xCE, 0x8B, 0x4B56_4D05
_SMBASE, _ARCH_CAPABILITIES = 0x9E, 0x10A
_CLEARED_BY_INIT: Final = (
    0x34, 0x48, 0xC001_011F, 0x4B56_4D01, 0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D06,
)  # fmt: skip
"""SMI_COUNT, SPEC_CTRL, VIRT_SPEC_CTRL, SYSTEM_TIME, ASYNC_PF_EN, STEAL_TIME, ASYNC_PF_INT."""

_OSVW_LENGTH, _ERRATA_KNOWN = 0xC001_0140, 3
"""Two errata, 400 and 415, count as worked around (svm_init_osvw of svm/svm.c)."""


class MsrState:
    """
    Values by MSR.

    :ivar values: what was written or is so after RESET; what is not in here is 0.
    :ivar clock_version: of the pvclock structure in the guest's memory.
    :ivar mcg_cap: MCG_CAP, whose low byte is the number of machine-check banks.
    """

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.mcg_cap = MAX_BANKS
        self.clock_version = 0
        self._is_fresh = True

    def __getitem__(self, index: int) -> int:
        return self.values.get(index, 0)

    def __setitem__(self, index: int, value: int) -> None:
        self.values[index] = value

    def reset(self, profile: Profile) -> None:
        """
        Do RESET, at birth, or INIT, from then on (kvm_vcpu_reset of arch/x86/kvm/x86.c).

        INIT leaves nearly all of them alone (SDM volume 3, table 10-1).
        """
        if not self._is_fresh:
            for index in _CLEARED_BY_INIT:
                self.values.pop(index, None)
            return
        self._is_fresh = False
        self.values = {
            _MISC_ENABLE: profile.misc_enable,
            _PLATFORM_INFO: 1 << 31,
            _UCODE_REV: profile.microcode,
            _POLL_CONTROL: 1,
            _SMBASE: 0x30000,
            _ARCH_CAPABILITIES: 0 if profile.vendor == "pvm" else HOST_ARCH_CAPABILITIES,
        }
        if profile.vendor == "amd":
            self.values[_OSVW_LENGTH] = _ERRATA_KNOWN
