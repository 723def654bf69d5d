# SPDX-License-Identifier: Apache-2.0
"""
Machine checks
--------------

MCG_* and the banks (get_msr_mce and set_msr_mce of arch/x86/kvm/x86.c; SDM volume 3, 16.3).
"""

import errno
import os
from typing import Final

from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.state import MAX_BANKS
from kvmsr.backend.soft.msr.table import INVALID, Handlers, stored
from kvmsr.backend.soft.msr.vcpu import MsrVcpu
from kvmsr.backend.soft.profile import Profile

__all__ = ("TABLE", "setup_mce", "supported_mcg_cap")

_CTL_P, _CMCI_P, _SER_P, _LMCE_P = 1 << 8, 1 << 10, 1 << 24, 1 << 27
_MCG_CAP, _MCG_STATUS, _MCG_CTL, _HWCR = 0x179, 0x17A, 0x17B, 0xC001_0015
_BANKS, _CTL2 = 0x400, 0x280
_ALL: Final = (1 << 64) - 1
_MAY_BE_CLEAR: Final = 1 << 10 | 1  # Linux clears these two where a BIOS would have
_MCI_STATUS_WRITABLE: Final = 1 << 18
_CTL2_BITS: Final = 1 << 30 | 0x7FFF


def supported_mcg_cap(profile: Profile) -> int:
    """Return what KVM_X86_GET_MCE_CAP_SUPPORTED says; CMCI and local machine checks are Intel's."""
    return _CTL_P | _SER_P | (_CMCI_P | _LMCE_P if profile.vendor == "intel" else 0)


def setup_mce(vcpu: MsrVcpu, mcg_cap: int) -> None:
    """
    Set MCG_CAP, and what follows from it (KVM_X86_SETUP_MCE).

    :raises OSError: EINVAL for no banks, too many, or features that KVM lacks.
    """
    banks = mcg_cap & 0xFF
    if not 0 < banks <= MAX_BANKS or mcg_cap & ~(
        supported_mcg_cap(vcpu.vm.profile) | 0xFF | 0xFF0000
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    vcpu.msrs.mcg_cap = mcg_cap
    if mcg_cap & _CTL_P:
        vcpu.msrs[_MCG_CTL] = _ALL
    for bank in range(banks):
        vcpu.msrs[_BANKS + 4 * bank] = _ALL
        if mcg_cap & _CMCI_P:
            vcpu.msrs[_CTL2 + bank] = 0


def _read_cap(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return MsrRet.OK, vcpu.msrs.mcg_cap


def _read_ctl(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    if not vcpu.msrs.mcg_cap & _CTL_P and not host:
        return INVALID
    return MsrRet.OK, vcpu.msrs[index]


def _write_ctl(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if (not vcpu.msrs.mcg_cap & _CTL_P and (value or not host)) or value not in (0, _ALL):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _has_bank(vcpu: MsrVcpu, bank: int) -> bool:
    return bank < vcpu.msrs.mcg_cap & 0xFF


def _read_bank(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    if not _has_bank(vcpu, index - _BANKS >> 2):
        return INVALID
    return MsrRet.OK, vcpu.msrs[index]


def _write_bank(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not _has_bank(vcpu, index - _BANKS >> 2):
        return MsrRet.INVALID
    register = index & 3
    if register == 0 and value and value | _MAY_BE_CLEAR != _ALL:
        return MsrRet.INVALID
    if register == 1 and value and not host:
        is_writable = vcpu.cpuid.is_amd and vcpu.msrs[_HWCR] & _MCI_STATUS_WRITABLE
        if not is_writable:
            return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _read_ctl2(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    is_there = _has_bank(vcpu, index - _CTL2) and (vcpu.msrs.mcg_cap & _CMCI_P or host)
    return (MsrRet.OK, vcpu.msrs[index]) if is_there else INVALID


def _write_ctl2(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    without = not vcpu.msrs.mcg_cap & _CMCI_P and (value or not host)
    if not _has_bank(vcpu, index - _CTL2) or without or value & ~_CTL2_BITS:
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


TABLE: Final = Handlers()
TABLE.add(_MCG_CAP, _read_cap, None)
TABLE.add(_MCG_STATUS, *stored)
TABLE.add(_MCG_CTL, _read_ctl, _write_ctl)
TABLE.add(range(_BANKS, _BANKS + 4 * MAX_BANKS), _read_bank, _write_bank)
TABLE.add(range(_CTL2, _CTL2 + MAX_BANKS), _read_ctl2, _write_ctl2)
