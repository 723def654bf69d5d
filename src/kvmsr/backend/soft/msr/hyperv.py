# SPDX-License-Identifier: Apache-2.0
"""
Hyper-V's MSRs
--------------

A kernel with CONFIG_KVM_HYPERV knows them, but gives them only to guests whose CPUID says Hyper-V,
which is not offered here: for all others they are illegal (arch/x86/kvm/hyperv.c).
"""

from typing import Final

from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import INVALID, UNSUPPORTED, Handlers
from kvmsr.backend.soft.msr.vcpu import MsrVcpu
from kvmsr.backend.soft.profile import Profile

__all__ = ("TABLE", "listed")

_TSC_INVARIANT: Final = 0x4000_0118
_KNOWN: Final = (
    *range(0x4000_0000, 0x4000_00A0), *range(0x4000_00B0, 0x4000_00B8),
    *range(0x4000_00F1, 0x4000_00F6), 0x4000_00FF, *range(0x4000_0100, 0x4000_0109),
    _TSC_INVARIANT,
)  # fmt: skip
_LISTED: Final = (
    0x4000_0000, 0x4000_0001, 0x4000_0020, 0x4000_0021, 0x4000_0022, 0x4000_0023, 0x4000_0100,
    0x4000_0101, 0x4000_0102, 0x4000_0103, 0x4000_0104, 0x4000_0105, 0x4000_0003, 0x4000_0002,
    0x4000_0010, 0x4000_0080, 0x4000_00B0, 0x4000_0073, 0x4000_0106, 0x4000_0107, 0x4000_0108,
)  # fmt: skip
_SYNIC: Final = frozenset(
    (*range(0x4000_0080, 0x4000_0085), *range(0x4000_0090, 0x4000_00A0),
     *range(0x4000_00B0, 0x4000_00B8))
)  # fmt: skip
"""The interrupt controller, which nobody can enable here, and the timers that need it."""
_DEBUGGER: Final = (0x4000_00FF, *range(0x4000_00F1, 0x4000_00F6))


def listed(profile: Profile) -> tuple[int, ...]:
    """Return those that KVM_GET_MSR_INDEX_LIST names, in its order."""
    if not profile.hyperv:
        return ()
    invariant = (_TSC_INVARIANT,) if profile.exempts_all_listed else ()
    return (*_LISTED, *invariant, *_DEBUGGER)


def _read(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    profile = vcpu.vm.profile
    if not profile.hyperv or (index == _TSC_INVARIANT and index not in listed(profile)):
        return UNSUPPORTED
    return (MsrRet.OK, vcpu.msrs[index]) if host else INVALID


def _write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    result, _ = _read(vcpu, index, host)
    if result == MsrRet.OK and value and index in _SYNIC:
        return MsrRet.INVALID
    if result == MsrRet.OK:
        vcpu.msrs[index] = value
    return result


TABLE: Final = Handlers()
TABLE.add(_KNOWN, _read, _write)
