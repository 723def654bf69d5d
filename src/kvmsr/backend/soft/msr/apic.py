# SPDX-License-Identifier: Apache-2.0
"""
The local APIC's MSRs
---------------------

x2APIC registers and TSC_DEADLINE, where the local APIC is in the kernel (arch/x86/kvm/lapic.c).
"""

from typing import Final

from kvmsr.backend.soft.msr.result import MsrRet
from kvmsr.backend.soft.msr.table import INVALID, Handlers
from kvmsr.backend.soft.msr.vcpu import MsrVcpu

__all__ = ("TABLE", "TSC_DEADLINE", "X2APIC")

X2APIC: Final = range(0x800, 0x900)
TSC_DEADLINE: Final = 0x6E0


def _read(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    value = vcpu.lapic.x2apic_read(index) if vcpu.lapic is not None else None
    return INVALID if value is None else (MsrRet.OK, value)


def _write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if vcpu.lapic is None or not vcpu.lapic.x2apic_write(index, value):
        return MsrRet.INVALID
    return MsrRet.OK


def _read_deadline(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    return MsrRet.OK, vcpu.lapic.tsc_deadline if vcpu.lapic is not None else 0


def _write_deadline(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    if vcpu.lapic is not None:
        vcpu.lapic.tsc_deadline = value
    return MsrRet.OK


TABLE: Final = Handlers()
TABLE.add(X2APIC, _read, _write)
TABLE.add(TSC_DEADLINE, _read_deadline, _write_deadline)
