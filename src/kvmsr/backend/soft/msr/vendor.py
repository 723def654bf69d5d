# SPDX-License-Identifier: Apache-2.0
"""
What the vendor modules handle
------------------------------

kvm_amd (svm/svm.c), kvm_intel (vmx/vmx.c) and kvm_pvm, before the common handlers. None of them
offers nested guests here.
"""

from typing import Final

from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import (
    INVALID,
    UNSUPPORTED,
    Handlers,
    Read,
    Write,
    constant,
    drop,
    refuse,
    stored,
)
from kvmsr.backend.soft.msr.vcpu import MsrVcpu

__all__ = ("DE_CFG_SUPPORTED", "VENDORS")

_SPEC_CTRL, _PRED_CMD, _FLUSH_CMD, _DEBUGCTL = 0x48, 0x49, 0x10B, 0x1D9
_TSC_RATIO, _VM_CR, _VM_IGNNE = 0xC000_0104, 0xC001_0114, 0xC001_0115
_VM_HSAVE_PA, _VIRT_SPEC_CTRL, _DE_CFG, _IC_CFG = 0xC001_0117, 0xC001_011F, 0xC001_1029, 0xC001_1021
_FEAT_CTL: Final = 0x3A
_SYSENTER_ESP_EIP: Final = (0x175, 0x176)
_LOCKED, _LMCE, _LMCE_P = 1, 1 << 20, 1 << 27
_MCG_EXT_CTL, _TSX_CTRL, _UMWAIT = 0x4D0, 0x122, 0xE1
_UMWAIT_BITS: Final = 0xFFFF_FFFD
_SGX_KEY_HASH: Final = range(0x8C, 0x90)
_NOT_OFFERED: Final = (
    *range(0x480, 0x492), 0xD90, 0x560, 0x561, *range(0x570, 0x573), *range(0x580, 0x588),
)  # fmt: skip
"""VMX capabilities, MPX's BNDCFGS, and Processor Trace: known, and not for this guest or host."""

_U64: Final = (1 << 64) - 1

DE_CFG_SUPPORTED: Final = 1 << 1
"""LFENCE serializes."""

_VM_CR_BITS: Final = 0x1F
_VM_CR_FROZEN: Final = 1 << 3 | 1 << 4  # LOCK and SVMDIS
_SVMDIS: Final = 1 << 4
_DEBUGCTL_BITS: Final = 0x3  # LBR and BTF
_DEBUGCTL_DROPPED: Final = 0x3C  # pins that nobody virtualizes
_RATIO_ONE: Final = 1 << 32


def _gated(feature: str, bits: int) -> tuple[Read, Write]:
    """Keep *bits*; for guests with a CPUID feature, and the host."""

    def read(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
        return (MsrRet.OK, vcpu.msrs[index]) if host or vcpu.cpuid.has(feature) else INVALID

    def write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
        if value & ~bits or not (host or vcpu.cpuid.has(feature)):
            return MsrRet.INVALID
        vcpu.msrs[index] = value
        return MsrRet.OK

    return read, write


def _command(feature: str) -> Write:
    """Take bit 0, for guests with a CPUID feature, and the host; nothing is kept."""

    def write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
        legal = (host or vcpu.cpuid.has(feature)) and not value & ~1
        return MsrRet.OK if legal else MsrRet.INVALID

    return write


def _write_flush(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not vcpu.vm.profile.unadvertised_unsupported:
        return MsrRet.UNSUPPORTED  # not there yet
    return _command("flush_l1d")(vcpu, index, value, host)


def _host_only(bits: int) -> tuple[Read, Write]:
    """Keep *bits* for the host; a guest is not offered what this belongs to."""

    def read(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
        return (MsrRet.OK, vcpu.msrs[index]) if host else INVALID

    def write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
        if value & ~bits or not host:
            return MsrRet.INVALID
        vcpu.msrs[index] = value
        return MsrRet.OK

    return read, write


# AMD


def _write_sysenter(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    vcpu.cpu.write_msr(index, value if vcpu.cpuid.is_intel else value & 0xFFFF_FFFF)
    return MsrRet.OK


def _write_debugctl_amd(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    value &= ~_DEBUGCTL_DROPPED
    if value & ~_DEBUGCTL_BITS:
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _write_vm_cr(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if value & ~_VM_CR_BITS:
        return MsrRet.INVALID
    old = vcpu.msrs[index]
    frozen = _VM_CR_FROZEN if old & _SVMDIS else 0
    vcpu.msrs[index] = value & ~frozen | old & frozen
    return MsrRet.OK


def _read_ic_cfg(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    # Which CPU it is decides, and without CPUID it is none; on family 15h it would not be 0.
    return (MsrRet.OK, 0) if vcpu.cpuid.is_set else UNSUPPORTED


def _write_de_cfg(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    # A guest may only say what is so anyway.
    if value & ~DE_CFG_SUPPORTED or (value != DE_CFG_SUPPORTED and not host):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _read_ratio(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return (MsrRet.OK, _RATIO_ONE) if host else INVALID


def _write_ratio(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return MsrRet.OK if host and value in (0, _RATIO_ONE) else MsrRet.INVALID


def _write_hsave(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    # The host may restore anything; a guest only a page that it can have.
    if not host and (value & 0xFFF or value >> vcpu.cpuid.maxphyaddr):
        return MsrRet.INVALID
    vcpu.msrs[index] = value & ~0xFFF
    return MsrRet.OK


_AMD: Final = Handlers()
_AMD.add(_SPEC_CTRL, *_gated("spec_ctrl", 0x7))
_AMD.add(_PRED_CMD, None, _command("pred_cmd"))
_AMD.add(_FLUSH_CMD, None, _write_flush)
_AMD.add(_SYSENTER_ESP_EIP, None, _write_sysenter)
_AMD.add(_DEBUGCTL, stored[0], _write_debugctl_amd)
_AMD.add(_TSC_RATIO, _read_ratio, _write_ratio)
_AMD.add(_VM_CR, stored[0], _write_vm_cr)
_AMD.add(_VM_IGNNE, None, drop)
_AMD.add(_VM_HSAVE_PA, stored[0], _write_hsave)
_AMD.add(_VIRT_SPEC_CTRL, *_gated("virt_ssbd", 1 << 2))
_AMD.add(_DE_CFG, stored[0], _write_de_cfg)
_AMD.add(_IC_CFG, _read_ic_cfg, None)


# Intel


def _none(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return INVALID


def _write_feat_ctl(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    valid = _LOCKED | (_LMCE if vcpu.msrs.mcg_cap & _LMCE_P else 0)
    if value & ~valid or (vcpu.msrs[index] & _LOCKED and not host):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _has_lmce(vcpu: MsrVcpu, host: bool) -> bool:
    return host or bool(vcpu.msrs[_FEAT_CTL] & _LMCE)


def _read_mcg_ext(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return (MsrRet.OK, vcpu.msrs[index]) if _has_lmce(vcpu, host) else INVALID


def _write_mcg_ext(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if value & ~1 or not _has_lmce(vcpu, host):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _read_tsx(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return UNSUPPORTED if host else INVALID  # ARCH_CAPABILITIES does not have it


def _write_tsx(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return _read_tsx(vcpu, index, host)[0]


def _write_debugctl(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return MsrRet.INVALID if value & ~_DEBUGCTL_BITS else MsrRet.OK


_INTEL: Final = Handlers()
_INTEL.add(_SPEC_CTRL, *_gated("spec_ctrl", 0x7))
_INTEL.add(_PRED_CMD, None, _command("pred_cmd"))
_INTEL.add(_FLUSH_CMD, None, _write_flush)
_INTEL.add(_FEAT_CTL, stored[0], _write_feat_ctl)
_INTEL.add(_DEBUGCTL, constant(0), _write_debugctl)
_INTEL.add(_MCG_EXT_CTL, _read_mcg_ext, _write_mcg_ext)
_INTEL.add(_TSX_CTRL, _read_tsx, _write_tsx)
_INTEL.add(_UMWAIT, *_host_only(_UMWAIT_BITS))
_INTEL.add(_SGX_KEY_HASH, *_host_only(_U64))
_INTEL.add(_NOT_OFFERED, _none, refuse)


# PVM: much is swallowed


_PVM: Final = Handlers()
_PVM.add((_SPEC_CTRL, _TSX_CTRL, _DEBUGCTL, _VIRT_SPEC_CTRL), constant(0), drop)
_PVM.add((_PRED_CMD, _FLUSH_CMD), None, drop)
_PVM.add(_TSC_RATIO, _read_ratio, _write_ratio)


VENDORS: Final = {"amd": _AMD, "intel": _INTEL, "pvm": _PVM}
"""The vendor modules' handlers, which come before the common ones."""
