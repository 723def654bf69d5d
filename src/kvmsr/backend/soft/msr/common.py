# SPDX-License-Identifier: Apache-2.0
"""
MSRs that all KVMs handle
-------------------------

What kvm_set_msr_common and kvm_get_msr_common of arch/x86/kvm/x86.c do, less the families that
have a room of their own.
"""

from typing import Final

from kvmsr.abi import Quirk
from kvmsr.backend.soft.msr.pv import update_clock
from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import (
    INVALID,
    Handlers,
    constant,
    cpu_held,
    drop,
    stored,
)
from kvmsr.backend.soft.msr.vcpu import MsrVcpu

__all__ = ("MWAIT", "TABLE", "set_apic_base")

_U64: Final = (1 << 64) - 1
_TSC, _TSC_ADJUST, _PAT, _EFER = 0x10, 0x3B, 0x277, 0xC000_0080
_PLATFORM_INFO, _MISC_FEATURES = 0xCE, 0x140
_CPUID_FAULT: Final = 1 << 31

TABLE: Final = Handlers()


# Time


def _read_tsc(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return MsrRet.OK, vcpu.clock.tsc()


def _move_tsc(vcpu: MsrVcpu, delta: int) -> None:
    if vcpu.vm.profile.moves_tsc:
        vcpu.clock.adjust_tsc(delta)
        update_clock(vcpu)


def _write_tsc(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    delta = value - vcpu.clock.tsc()
    if not host:
        vcpu.msrs[_TSC_ADJUST] = vcpu.msrs[_TSC_ADJUST] + delta & _U64
    _move_tsc(vcpu, delta)
    return MsrRet.OK


def _write_tsc_adjust(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not vcpu.cpuid.has("tsc_adjust"):
        return MsrRet.OK  # and nothing happens
    if not host:
        _move_tsc(vcpu, value - vcpu.msrs[index])
    vcpu.msrs[index] = value
    return MsrRet.OK


TABLE.add(_TSC, _read_tsc, _write_tsc)
TABLE.add(_TSC_ADJUST, stored[0], _write_tsc_adjust)


# EFER, APIC_BASE, PAT, and what the CPU holds

_SCE, _LME, _LMA, _NX, _FFXSR = 1, 1 << 8, 1 << 10, 1 << 11, 1 << 14
_EFER_BY_VENDOR: Final = {"amd": _FFXSR}
_EFER_FEATURES: Final = ((_LME | _LMA, "lm"), (_NX, "nx"), (_FFXSR, "fxsr_opt"))
_CPU_HELD: Final = (
    0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102,
    0xC000_0103, 0x174, 0x175, 0x176,
)  # fmt: skip
_PAT_TYPES: Final = frozenset((0, 1, 4, 5, 6, 7))


def _write_efer(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    supported = _SCE | _LME | _LMA | _NX | _EFER_BY_VENDOR.get(vcpu.vm.profile.vendor, 0)
    if value & ~supported:
        return MsrRet.INVALID
    if not host:
        if any(value & bit and not vcpu.cpuid.has(name) for bit, name in _EFER_FEATURES):
            return MsrRet.INVALID
        if vcpu.cpu.paging and (value ^ vcpu.cpu.read_msr(_EFER)) & _LME:
            return MsrRet.INVALID
    vcpu.cpu.write_msr(_EFER, value)
    return MsrRet.OK


_APIC_ENABLE, _X2APIC = 1 << 11, 1 << 10
_APIC_RESERVED: Final = 0x2FF


def _read_apic_base(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return MsrRet.OK, vcpu.apic_base


def set_apic_base(vcpu: MsrVcpu, value: int, host: bool) -> MsrRet:
    """Write IA32_APIC_BASE (kvm_set_apic_base); only the host may take forbidden steps."""
    reserved = _APIC_RESERVED | -1 << vcpu.cpuid.maxphyaddr
    if not vcpu.cpuid.has("x2apic"):
        reserved |= _X2APIC
    modes = _APIC_ENABLE | _X2APIC
    old, new = vcpu.apic_base & modes, value & modes
    if value & reserved or new == _X2APIC:
        return MsrRet.INVALID
    if not host and (old, new) in ((modes, _APIC_ENABLE), (0, modes)):
        return MsrRet.INVALID
    vcpu.apic_base = value
    return MsrRet.OK


def _write_pat(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if vcpu.vm.profile.checks_pat and not _PAT_TYPES.issuperset(value.to_bytes(8, "little")):
        return MsrRet.INVALID
    vcpu.cpu.write_msr(_PAT, value)
    return MsrRet.OK


TABLE.add(_EFER, cpu_held[0], _write_efer)
TABLE.add(0x1B, _read_apic_base, lambda vcpu, index, value, host: set_apic_base(vcpu, value, host))
TABLE.add(_PAT, cpu_held[0], _write_pat)
TABLE.add(_CPU_HELD, *cpu_held)


# Configuration

_EMON: Final = 1 << 7
MWAIT: Final = 1 << 18
"""MISC_ENABLE: MONITOR and MWAIT, and their CPUID bit."""
_PMU_READ_ONLY: Final = 1 << 11 | 1 << 12
_HWCR_IGNORED: Final = 1 << 3 | 1 << 6 | 1 << 8


def _write_misc_enable(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    old = vcpu.msrs[index]
    if not host and vcpu.vm.profile.vendor != "pvm":
        if (old ^ value) & _PMU_READ_ONLY:
            return MsrRet.INVALID
        value = value & ~_EMON | old & _EMON
    follows = not vcpu.vm.has_quirk(Quirk.MISC_ENABLE_NO_MWAIT) and (old ^ value) & MWAIT
    if follows and not vcpu.cpuid.has("sse3"):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    if follows:
        vcpu.cpuid = vcpu.cpuid.with_mwait(bool(value & MWAIT))
    return MsrRet.OK


def _read_platform_info(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    if not host and not vcpu.vm.guest_can_read_platform_info:
        return INVALID
    return MsrRet.OK, vcpu.msrs[index]


def _write_platform_info(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    # Newer kernels, where it is a feature MSR, do not look at what the guest has enabled.
    looks = not vcpu.vm.profile.feature_msrs_frozen
    enabled = looks and vcpu.msrs[_MISC_FEATURES] & 1
    if not host or (enabled and not value & _CPUID_FAULT):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _write_misc_features(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    has_faulting = vcpu.msrs[_PLATFORM_INFO] & _CPUID_FAULT
    if vcpu.vm.profile.vendor != "pvm" and (value & ~1 or (value and not has_faulting)):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _write_hwcr(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    value &= ~_HWCR_IGNORED
    profile = vcpu.vm.profile
    if value & ~profile.hwcr_bits or (profile.hwcr_exact and value not in (0, profile.hwcr_bits)):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _write_ucode_rev(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if host:
        vcpu.msrs[index] = value
    return MsrRet.OK


def _write_by_host(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not host:
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _read_smbase(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return (MsrRet.OK, vcpu.msrs[index]) if host and vcpu.vm.profile.smm else INVALID


def _write_smbase(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return _write_by_host(vcpu, index, value, host and vcpu.vm.profile.smm)


TABLE.add(0x1A0, stored[0], _write_misc_enable)
TABLE.add(_PLATFORM_INFO, _read_platform_info, _write_platform_info)
TABLE.add(_MISC_FEATURES, stored[0], _write_misc_features)
TABLE.add(0xC001_0015, stored[0], _write_hwcr)
TABLE.add(0x8B, stored[0], _write_ucode_rev)
TABLE.add(0x34, stored[0], _write_by_host)
TABLE.add(0x9E, _read_smbase, _write_smbase)
TABLE.add(0x1FC, *stored)


# Feature MSRs, and others that stand behind a CPUID bit


def _unadvertised(vcpu: MsrVcpu) -> MsrRet:
    newer = vcpu.vm.profile.unadvertised_unsupported
    return MsrRet.UNSUPPORTED if newer else MsrRet.INVALID


def _is_gated(vcpu: MsrVcpu, feature: str, host: bool) -> bool:
    """Return whether the guest's CPUID bars access; newer kernels bar the host's, too."""
    barred = not host or vcpu.vm.profile.unadvertised_unsupported
    return barred and not vcpu.cpuid.has(feature)


_FEATURE_MSRS: Final = {0x10A: "arch_capabilities", 0x345: "pdcm"}


def _read_feature(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    if _is_gated(vcpu, _FEATURE_MSRS[index], host):
        return _unadvertised(vcpu), 0
    return MsrRet.OK, vcpu.msrs[index]


def _write_feature(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not host or _is_gated(vcpu, _FEATURE_MSRS[index], host):
        return _unadvertised(vcpu)
    if index == 0x345 and value:  # there is no PMU
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _read_xss(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    if not host and not vcpu.cpuid.has("xsaves"):
        return INVALID
    return MsrRet.OK, vcpu.msrs[index]


def _write_xss(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if _is_gated(vcpu, "xsaves", host):
        return _unadvertised(vcpu)
    return MsrRet.INVALID if value else MsrRet.OK  # no supervisor state is supported


def _read_xfd(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return (MsrRet.OK, 0) if host or vcpu.cpuid.has("xfd") else INVALID


def _write_xfd(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    is_there = host or vcpu.cpuid.has("xfd")
    return MsrRet.OK if is_there and not value else MsrRet.INVALID


def _read_osvw(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return (MsrRet.OK, vcpu.msrs[index]) if vcpu.cpuid.has("osvw") else INVALID


def _write_osvw(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not vcpu.cpuid.has("osvw"):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


TABLE.add(_FEATURE_MSRS, _read_feature, _write_feature)
TABLE.add(0xDA0, _read_xss, _write_xss)
TABLE.add((0x1C4, 0x1C5), _read_xfd, _write_xfd)
TABLE.add((0xC001_0140, 0xC001_0141), _read_osvw, _write_osvw)


# MSRs that are there for guests that look, and do nothing


def _write_zero_only(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return MsrRet.INVALID if value else MsrRet.OK


_CONSTANTS: Final = {
    0x00: 0, 0x01: 0, 0x17: 0, 0x2A: 0, 0x2C: 1 << 24, 0xCD: 3, 0x198: 0x400_0000_03E8, 0x199: 0,
    0x1DB: 0, 0x1DC: 0, 0x1DD: 0, 0x1DE: 0, 0x606: 0, 0x611: 0, 0x619: 0, 0x639: 0, 0x641: 0,
    0xC001_0010: 0, 0xC001_0055: 0, 0xC001_0112: 0, 0xC001_0113: 0,
}  # fmt: skip
_DROPPED: Final = {
    0x11E: 0xBE70_2111, 0xC001_001B: 0x2000_0000, 0xC001_001F: 0, 0xC001_0117: 0, 0xC001_102A: 0,
    0xC001_1022: 0, 0xC001_1023: 0, 0xC001_102C: 0,
}  # fmt: skip
_PMU: Final = (0xC1, 0xC2, 0x186, 0x187, *range(0xC001_0000, 0xC001_0008))

for _index, _value in _CONSTANTS.items():
    TABLE.add(_index, constant(_value), None)
for _index, _value in _DROPPED.items():
    TABLE.add(_index, constant(_value), drop)
TABLE.add(_PMU, constant(0), drop)  # counters, with the PMU off
TABLE.add((0x79, 0xC001_0020), None, drop)  # microcode updates
TABLE.add(0xC001_0058, constant(0), _write_zero_only)
