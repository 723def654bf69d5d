# SPDX-License-Identifier: Apache-2.0
"""
Ioctl numbers
-------------

KVM's ioctl numbers for x86-64, computed from the argument's size as <asm-generic/ioctl.h> does.
Source: Linux include/uapi/linux/kvm.h.
"""

import ctypes
from typing import Any, Final

from kvmsr.abi import cpu, vm

KVMIO: Final = 0xAE

_NONE, _WRITE, _READ = 0, 1, 2


def _number(direction: int, nr: int, size: int) -> int:
    return direction << 30 | size << 16 | KVMIO << 8 | nr


def _io(nr: int) -> int:
    return _number(_NONE, nr, 0)


def _ior(nr: int, argument: Any) -> int:
    return _number(_READ, nr, ctypes.sizeof(argument))


def _iow(nr: int, argument: Any) -> int:
    return _number(_WRITE, nr, ctypes.sizeof(argument))


def _iowr(nr: int, argument: Any) -> int:
    return _number(_READ | _WRITE, nr, ctypes.sizeof(argument))


# The system fd.
KVM_GET_API_VERSION: Final = _io(0x00)
KVM_CREATE_VM: Final = _io(0x01)
KVM_GET_MSR_INDEX_LIST: Final = _iowr(0x02, vm.MsrList)
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _iowr(0x05, cpu.Cpuid2)
KVM_GET_EMULATED_CPUID: Final = _iowr(0x09, cpu.Cpuid2)
KVM_GET_MSR_FEATURE_INDEX_LIST: Final = _iowr(0x0A, vm.MsrList)

KVM_GET_SUPPORTED_HV_CPUID: Final = _iowr(0xC1, cpu.Cpuid2)  # of a vCPU, too

# VM fds.
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_GET_DIRTY_LOG: Final = _iow(0x42, vm.DirtyLog)
KVM_SET_USER_MEMORY_REGION: Final = _iow(0x46, vm.UserspaceMemoryRegion)
KVM_SET_TSS_ADDR: Final = _io(0x47)
KVM_SET_IDENTITY_MAP_ADDR: Final = _iow(0x48, ctypes.c_uint64)
KVM_CREATE_IRQCHIP: Final = _io(0x60)
KVM_IRQ_LINE: Final = _iow(0x61, vm.IrqLevel)
KVM_GET_IRQCHIP: Final = _iowr(0x62, vm.Irqchip)
KVM_SET_IRQCHIP: Final = _ior(0x63, vm.Irqchip)  # the header says _IOR, although it writes
KVM_IRQ_LINE_STATUS: Final = _iowr(0x67, vm.IrqLevel)
KVM_SET_GSI_ROUTING: Final = _iow(0x6A, vm.IrqRouting)
KVM_REINJECT_CONTROL: Final = _io(0x71)
KVM_IRQFD: Final = _iow(0x76, vm.Irqfd)
KVM_CREATE_PIT2: Final = _iow(0x77, vm.PitConfig)
KVM_SET_BOOT_CPU_ID: Final = _io(0x78)
KVM_IOEVENTFD: Final = _iow(0x79, vm.Ioeventfd)
KVM_SET_CLOCK: Final = _iow(0x7B, vm.ClockData)
KVM_GET_CLOCK: Final = _ior(0x7C, vm.ClockData)
KVM_GET_PIT2: Final = _ior(0x9F, vm.PitState2)
KVM_SET_PIT2: Final = _iow(0xA0, vm.PitState2)
KVM_SET_TSC_KHZ: Final = _io(0xA2)
KVM_GET_TSC_KHZ: Final = _io(0xA3)
KVM_SIGNAL_MSI: Final = _iow(0xA5, vm.Msi)
KVM_CLEAR_DIRTY_LOG: Final = _iowr(0xC0, vm.ClearDirtyLog)
KVM_X86_SET_MSR_FILTER: Final = _iow(0xC6, vm.MsrFilter)

# vCPU fds.
KVM_RUN: Final = _io(0x80)
KVM_GET_REGS: Final = _ior(0x81, cpu.Regs)
KVM_SET_REGS: Final = _iow(0x82, cpu.Regs)
KVM_GET_SREGS: Final = _ior(0x83, cpu.Sregs)
KVM_SET_SREGS: Final = _iow(0x84, cpu.Sregs)
KVM_TRANSLATE: Final = _iowr(0x85, cpu.Translation)
KVM_INTERRUPT: Final = _iow(0x86, cpu.Interrupt)
KVM_GET_MSRS: Final = _iowr(0x88, cpu.Msrs)
KVM_SET_MSRS: Final = _iow(0x89, cpu.Msrs)
KVM_SET_SIGNAL_MASK: Final = _iow(0x8B, cpu.SignalMask)
KVM_GET_FPU: Final = _ior(0x8C, cpu.Fpu)
KVM_SET_FPU: Final = _iow(0x8D, cpu.Fpu)
KVM_GET_LAPIC: Final = _ior(0x8E, cpu.LapicState)
KVM_SET_LAPIC: Final = _iow(0x8F, cpu.LapicState)
KVM_SET_CPUID2: Final = _iow(0x90, cpu.Cpuid2)
KVM_GET_CPUID2: Final = _iowr(0x91, cpu.Cpuid2)
KVM_SET_VAPIC_ADDR: Final = _iow(0x93, ctypes.c_uint64)
KVM_GET_MP_STATE: Final = _ior(0x98, cpu.MpState)
KVM_SET_MP_STATE: Final = _iow(0x99, cpu.MpState)
KVM_NMI: Final = _io(0x9A)
KVM_SET_GUEST_DEBUG: Final = _iow(0x9B, cpu.GuestDebug)
KVM_X86_SETUP_MCE: Final = _iow(0x9C, ctypes.c_uint64)
KVM_X86_GET_MCE_CAP_SUPPORTED: Final = _ior(0x9D, ctypes.c_uint64)
KVM_X86_SET_MCE: Final = _iow(0x9E, cpu.Mce)
KVM_GET_VCPU_EVENTS: Final = _ior(0x9F, cpu.VcpuEvents)
KVM_SET_VCPU_EVENTS: Final = _iow(0xA0, cpu.VcpuEvents)
KVM_GET_DEBUGREGS: Final = _ior(0xA1, cpu.Debugregs)
KVM_SET_DEBUGREGS: Final = _iow(0xA2, cpu.Debugregs)
KVM_GET_XSAVE: Final = _ior(0xA4, cpu.Xsave)
KVM_SET_XSAVE: Final = _iow(0xA5, cpu.Xsave)
KVM_GET_XCRS: Final = _ior(0xA6, cpu.Xcrs)
KVM_SET_XCRS: Final = _iow(0xA7, cpu.Xcrs)
KVM_KVMCLOCK_CTRL: Final = _io(0xAD)
KVM_SMI: Final = _io(0xB7)
KVM_GET_SREGS2: Final = _ior(0xCC, cpu.Sregs2)
KVM_SET_SREGS2: Final = _iow(0xCD, cpu.Sregs2)
KVM_GET_XSAVE2: Final = _ior(0xCF, cpu.Xsave)

# VM and vCPU fds.
KVM_ENABLE_CAP: Final = _iow(0xA3, vm.EnableCap)
KVM_GET_STATS_FD: Final = _io(0xCE)

NAMES: Final[dict[int, str]] = {
    value: name
    for name, value in sorted(globals().items())
    if name.startswith("KVM_") and isinstance(value, int)
}
"""Names by number, for messages."""
