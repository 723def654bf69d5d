# SPDX-License-Identifier: Apache-2.0
"""
KVM's own MSRs
--------------

The paravirtual clock and its kin (Documentation/virt/kvm/x86/msr.rst; kvm_set_msr_common).
"""

import struct
import time
from collections.abc import Callable
from typing import Final

from kvmsr.backend.soft.clock import scale
from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import INVALID, UNSUPPORTED, Handlers, stored
from kvmsr.backend.soft.msr.vcpu import MsrVcpu

__all__ = ("TABLE", "has_pv_feature", "update_clock")

_WALL_CLOCK, _SYSTEM_TIME, _WALL_CLOCK_NEW, _SYSTEM_TIME_NEW = 0x11, 0x12, 0x4B564D00, 0x4B564D01
_ASYNC_PF_EN, _STEAL_TIME, _PV_EOI, _POLL_CONTROL, _ASYNC_PF_INT, _ASYNC_PF_ACK = range(
    0x4B564D02, 0x4B564D08
)
_INTERNAL_GUEST_SSP: Final = 0x4B564DFF
_CLOCKSOURCE, _CLOCKSOURCE2, _ASYNC_PF, _STEAL, _EOI = 0, 3, 4, 5, 6
_ASYNC_PF_VMEXIT, _POLL, _ASYNC_PF_BY_INT = 10, 12, 14

TABLE: Final = Handlers()

_ENABLED: Final = 1
_BY_INT_ENABLED: Final = 1 | 1 << 3
_NANOSECOND: Final = 1_000_000_000
_WALL: Final = struct.Struct("<III")
_PVCLOCK: Final = struct.Struct("<IIQQIbBxx")
_TSC_STABLE: Final = 1


def has_pv_feature(vcpu: MsrVcpu, feature: int) -> bool:
    """guest_pv_has: all of it is there, until user space enforces the CPUID bits."""
    return not vcpu.enforce_pv_cpuid or bool(vcpu.cpuid.pv_features >> feature & 1)


def _write_wall_clock(vcpu: MsrVcpu, value: int) -> MsrRet:
    if value:  # 0, as restored for guests that never asked, is not an address
        begun = time.time_ns() - vcpu.clock.kvmclock()[0]
        seconds, rest = divmod(begun, _NANOSECOND)
        vcpu.vm.write_guest(value, _WALL.pack(2, seconds & 0xFFFF_FFFF, rest))
    return MsrRet.OK


def _write_system_time(vcpu: MsrVcpu, value: int) -> MsrRet:
    vcpu.msrs[_SYSTEM_TIME_NEW] = value
    update_clock(vcpu)
    return MsrRet.OK


def update_clock(vcpu: MsrVcpu) -> None:
    """Write to the guest how its TSC relates to kvmclock now (kvm_guest_time_update)."""
    place = vcpu.msrs[_SYSTEM_TIME_NEW]
    if not place & _ENABLED:
        return
    vcpu.msrs.clock_version = version = vcpu.msrs.clock_version + 2 & 0xFFFF_FFFF
    now, tsc = vcpu.clock.kvmclock()
    clock = _PVCLOCK.pack(version, 0, tsc, now, *scale(vcpu.clock.tsc_khz), _TSC_STABLE)
    vcpu.vm.write_guest(place & ~_ENABLED, clock)


def _write_async_pf(vcpu: MsrVcpu, value: int) -> MsrRet:
    needs = ((4, _ASYNC_PF_VMEXIT), (8, _ASYNC_PF_BY_INT))
    if value & 0x30 or any(
        value & bit and not has_pv_feature(vcpu, feature) for bit, feature in needs
    ):
        return MsrRet.INVALID
    if not vcpu.vm.irqchip_in_kernel:
        return MsrRet.INVALID if value else MsrRet.OK
    enables = value & _BY_INT_ENABLED == _BY_INT_ENABLED
    return _needs_page(vcpu, value & ~0x3F if enables else None)


def _needs_page(vcpu: MsrVcpu, address: int | None) -> MsrRet:
    there = address is None or vcpu.vm.has_memory(address)
    return MsrRet.OK if there else MsrRet.INVALID


def _write_steal_time(vcpu: MsrVcpu, value: int) -> MsrRet:
    # What is never written stays 0: a guest here is never robbed of time that it could see.
    return MsrRet.INVALID if value & 0x3E else MsrRet.OK


def _write_eoi(vcpu: MsrVcpu, value: int) -> MsrRet:
    address = value & ~_ENABLED
    return MsrRet.INVALID if value & 2 else _needs_page(vcpu, address if value & 1 else None)


def _write_poll_control(vcpu: MsrVcpu, value: int) -> MsrRet:
    return MsrRet.INVALID if value & ~1 else MsrRet.OK


def _write_async_pf_int(vcpu: MsrVcpu, value: int) -> MsrRet:
    legal = value <= 0xFF and vcpu.vm.irqchip_in_kernel
    return MsrRet.OK if legal else MsrRet.INVALID


def _add(
    index: int,
    feature: int,
    check: Callable[[MsrVcpu, int], MsrRet],
    place: int | None = None,
) -> None:
    """Add an MSR; *place*: the newer one whose other name it is, with another feature bit."""
    kept = index if place is None else place

    def read(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
        return stored[0](vcpu, kept, host) if has_pv_feature(vcpu, feature) else UNSUPPORTED

    def write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
        if not has_pv_feature(vcpu, feature):
            return MsrRet.UNSUPPORTED
        result = check(vcpu, value)
        if result == MsrRet.OK:
            vcpu.msrs[kept] = value
        return result

    TABLE.add(index, read, write)


def _write_ack(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return MsrRet.OK if has_pv_feature(vcpu, _ASYNC_PF_BY_INT) else MsrRet.UNSUPPORTED


_add(_WALL_CLOCK, _CLOCKSOURCE, _write_wall_clock, _WALL_CLOCK_NEW)
_add(_SYSTEM_TIME, _CLOCKSOURCE, _write_system_time, _SYSTEM_TIME_NEW)
_add(_WALL_CLOCK_NEW, _CLOCKSOURCE2, _write_wall_clock)
_add(_SYSTEM_TIME_NEW, _CLOCKSOURCE2, _write_system_time)
_add(_ASYNC_PF_EN, _ASYNC_PF, _write_async_pf)
_add(_STEAL_TIME, _STEAL, _write_steal_time)
_add(_PV_EOI, _EOI, _write_eoi)
_add(_POLL_CONTROL, _POLL, _write_poll_control)
_add(_ASYNC_PF_INT, _ASYNC_PF_BY_INT, _write_async_pf_int)


def _read_ssp(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    """The guest's shadow-stack pointer, which newer kernels move by an MSR that is the host's."""
    newer = vcpu.vm.profile.exempts_all_listed
    return INVALID if newer and not host else UNSUPPORTED


def _write_ssp(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    return _read_ssp(vcpu, index, host)[0]


TABLE.add(_INTERNAL_GUEST_SSP, _read_ssp, _write_ssp)
TABLE.add(
    _ASYNC_PF_ACK, lambda vcpu, index, host: (_write_ack(vcpu, index, 0, host), 0), _write_ack
)
