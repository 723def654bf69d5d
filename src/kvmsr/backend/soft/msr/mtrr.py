# SPDX-License-Identifier: Apache-2.0
"""
MTRRs
-----

Values that KVM checks and keeps (arch/x86/kvm/mtrr.c; SDM volume 3, 12.11).
"""

from typing import Final

from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import INVALID, UNSUPPORTED, Handlers, constant, refuse, stored
from kvmsr.backend.soft.msr.vcpu import MsrVcpu

__all__ = ("TABLE",)

_CAPABILITIES: Final = 0x508  # eight variable ranges, fixed ranges, write combining
_VARIABLE: Final = range(0x200, 0x210)
_FIXED: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_DEFAULT: Final = 0x2FF
_DEFAULT_BITS: Final = 0xCFF
_TYPES: Final = frozenset((0, 1, 4, 5, 6))
_OTHERS: Final = (*range(0x210, 0x250), *range(0x251, 0x258), *range(0x25A, 0x268))
_FURTHER: Final = (*range(0x270, 0x277), *range(0x278, 0x280), *range(0x2A0, 0x2FF))


def _write_variable(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    is_mask = index & 1
    reserved = -1 << vcpu.cpuid.maxphyaddr | (0x7FF if is_mask else 0xF00)
    if value & reserved or (not is_mask and value & 0xFF not in _TYPES):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _write_fixed(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if not _TYPES.issuperset(value.to_bytes(8, "little")):
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _write_default(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if value & ~_DEFAULT_BITS or value & 0xFF not in _TYPES:
        return MsrRet.INVALID
    vcpu.msrs[index] = value
    return MsrRet.OK


def _read_none(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return INVALID


def _read_window(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return INVALID if vcpu.vm.profile.mtrr_window else UNSUPPORTED


def _write_window(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return _read_window(vcpu, index, host)[0]


TABLE: Final = Handlers()
TABLE.add(0xFE, constant(_CAPABILITIES), None)
TABLE.add(_VARIABLE, stored[0], _write_variable)
TABLE.add(_FIXED, stored[0], _write_fixed)
TABLE.add(_DEFAULT, stored[0], _write_default)
TABLE.add(_OTHERS, _read_none, refuse)
TABLE.add(_FURTHER, _read_window, _write_window)
