# SPDX-License-Identifier: Apache-2.0
"""
One access
----------

What KVM does around its handlers, for guest and host alike: __kvm_set_msr, __kvm_get_msr and
kvm_do_msr_access of arch/x86/kvm/x86.c. The filter is not asked here: that is for guests alone.
"""

import logging
from typing import Final

from kvmsr.backend.soft.msr.handlers import handlers
from kvmsr.backend.soft.msr.indices import emulated_msrs, msrs_to_save
from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import INVALID, UNSUPPORTED
from kvmsr.backend.soft.msr.vcpu import MsrVcpu
from kvmsr.backend.soft.profile import Profile

__all__ = ("MsrRet", "get_msr", "pardons", "set_msr")

_log: Final = logging.getLogger("kvmsr.soft")

_CANONICAL: Final = frozenset((0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102))
_SYSENTER: Final = frozenset((0x175, 0x176))
_TSC_AUX: Final = 0xC000_0103
_CHECKED: Final = _CANONICAL | _SYSENTER | {_TSC_AUX}
_U64: Final = (1 << 64) - 1
_UNKNOWN: Final = MsrRet.UNSUPPORTED
_ZERO: Final = (MsrRet.OK, 0)


def get_msr(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    """Read MSR *index*; what is not OK has the value 0."""
    if index == _TSC_AUX and not host and not _has_tsc_aux(vcpu):
        return INVALID
    profile = vcpu.vm.profile
    handler = handlers(profile.vendor).read.get(index)
    if handler is not None:
        answer = handler(vcpu, index, host)
        if answer[0] != _UNKNOWN:
            return answer
    return _ZERO if pardons(profile, index, host=host) else UNSUPPORTED


def set_msr(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    """Write MSR *index*."""
    if index in _CHECKED:
        checked = _check(vcpu, index, value, host)
        if checked is None:
            return MsrRet.INVALID
        value = checked
    profile = vcpu.vm.profile
    handler = handlers(profile.vendor).write.get(index)
    if handler is not None:
        result = handler(vcpu, index, value, host)
        if result != _UNKNOWN:
            return result
    return MsrRet.OK if pardons(profile, index, value, host=host) else _UNKNOWN


def pardons(profile: Profile, index: int, value: int | None = None, *, host: bool) -> bool:
    """
    Return whether an access that no handler knows succeeds all the same (kvm_do_msr_access).

    :param value: what is written; None: it is read.
    :param host: whether what the host saves and restores as 0 counts.
    """
    if host and not value and _is_advertised(profile, index):
        return True
    if profile.ignore_msrs and profile.report_ignored_msrs:
        if value is None:
            _log.info("ignored rdmsr: %#x", index)
        else:
            _log.info("ignored wrmsr: %#x data %#x", index, value)
    return profile.ignore_msrs


def _is_advertised(profile: Profile, index: int) -> bool:
    listed = index in msrs_to_save(profile)
    return listed or (profile.exempts_all_listed and index in emulated_msrs(profile))


def _check(vcpu: MsrVcpu, index: int, value: int, host: bool) -> int | None:
    """Return the value to write, or None for an illegal one."""
    if index in _CANONICAL:
        return value if value == _canonical(vcpu, value) else None
    if index in _SYSENTER:
        return _canonical(vcpu, value)  # Intel would fault and AMD would not: this suits both
    if not host and not _has_tsc_aux(vcpu):
        return None
    newer = vcpu.vm.profile.tsc_aux_needs_cpuid  # whoever is not AMD is like Intel
    like_intel = not vcpu.cpuid.is_amd if newer else vcpu.cpuid.is_intel
    return None if like_intel and value >> 32 else value & 0xFFFF_FFFF


def _canonical(vcpu: MsrVcpu, value: int) -> int:
    """Extend the highest bit of a linear address; the host's CPU decides which one that is."""
    sign = 1 << (56 if vcpu.vm.profile.la57 else 47)
    return ((value & (sign << 1) - 1) ^ sign) - sign & _U64


def _has_tsc_aux(vcpu: MsrVcpu) -> bool:
    return vcpu.cpuid.has("rdtscp") or vcpu.cpuid.has("rdpid")
