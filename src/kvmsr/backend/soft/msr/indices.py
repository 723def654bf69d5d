# SPDX-License-Identifier: Apache-2.0
"""
Index lists
-----------

What KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST give, and what the host supports in
feature MSRs. The lists are global: no guest's CPUID changes them.
"""

import functools
from typing import Final

from kvmsr.backend.soft.msr import hyperv
from kvmsr.backend.soft.msr.state import HOST_ARCH_CAPABILITIES
from kvmsr.backend.soft.msr.vendor import DE_CFG_SUPPORTED
from kvmsr.backend.soft.profile import Profile

__all__ = ("emulated_msrs", "feature_msrs", "feature_value", "msrs_to_save")

# In the kernel's order.
_SAVED: Final = (
    0x174, 0x175, 0x176, 0xC000_0081, 0xC000_0083, 0xC000_0102, 0xC000_0084, 0xC000_0082, 0x10,
    0x277,
)  # fmt: skip
_VM_HSAVE_PA, _FEAT_CTL, _TSC_AUX, _DE_CFG = 0xC001_0117, 0x3A, 0xC000_0103, 0xC001_1029
_LAST_BRANCH: Final = (0x1D9, 0x1DB, 0x1DC, 0x1DD, 0x1DE)
_CLOCKS: Final = (0x12, 0x11, 0x4B56_4D01, 0x4B56_4D00)
_PV: Final = (0x4B56_4D02, 0x4B56_4D03, 0x4B56_4D04, 0x4B56_4D06, 0x4B56_4D07)
_EMULATED: Final = (0x3B, 0x6E0, 0x10A, 0x345, 0x1A0, 0x17A, 0x17B)
_MCG_EXT_CTL, _SMBASE = 0x4D0, 0x9E
_MORE: Final = (0x34, 0xCE, 0x140)
_VIRT_SPEC_CTRL, _TSC_RATIO = 0xC001_011F, 0xC000_0104
_BY_VENDOR: Final = {"amd": (_VIRT_SPEC_CTRL, _TSC_RATIO), "intel": (), "pvm": (_VIRT_SPEC_CTRL,)}
_LAST: Final = (0x1FC, 0x8B, 0xC001_0015, 0x4B56_4D05)

_UCODE_REV, _ARCH_CAPABILITIES, _PERF_CAPABILITIES, _PLATFORM_INFO = 0x8B, 0x10A, 0x345, 0xCE
_HOST_MICROCODE: Final = {"intel": 0x1_0000_0000}
_AMD_MICROCODE: Final = 0x0100_0065


@functools.cache
def msrs_to_save(profile: Profile) -> tuple[int, ...]:
    """Return those that the host has, too."""
    vendor = profile.vendor
    own: tuple[int, ...] = (_FEAT_CTL,) if vendor == "intel" else (_VM_HSAVE_PA,)
    if vendor != "pvm":
        own = (*own, _TSC_AUX)
    newer = profile.exempts_all_listed
    return (*_SAVED, *own, *(_LAST_BRANCH if newer else ()))


@functools.cache
def emulated_msrs(profile: Profile) -> tuple[int, ...]:
    """Return those that only KVM makes."""
    return (
        *_CLOCKS,
        *hyperv.listed(profile),
        *_PV,
        *_EMULATED,
        *((_MCG_EXT_CTL,) if profile.vendor == "intel" else ()),
        *((_SMBASE,) if profile.smm else ()),
        *_MORE,
        *_BY_VENDOR[profile.vendor],
        *_LAST,
    )


@functools.cache
def feature_msrs(profile: Profile) -> tuple[int, ...]:
    """Return those that describe features."""
    own = (_DE_CFG,) if profile.vendor == "amd" else ()
    listed = (*own, _UCODE_REV, _ARCH_CAPABILITIES, _PERF_CAPABILITIES)
    return (*listed, _PLATFORM_INFO) if profile.feature_msrs_frozen else listed


def feature_value(profile: Profile, index: int) -> int:
    """Return what the host supports of a feature MSR."""
    return {
        _UCODE_REV: _HOST_MICROCODE.get(profile.vendor, _AMD_MICROCODE),
        _ARCH_CAPABILITIES: HOST_ARCH_CAPABILITIES,
        _PERF_CAPABILITIES: 0,
        _PLATFORM_INFO: 1 << 31,
        _DE_CFG: DE_CFG_SUPPORTED,
    }[index]
