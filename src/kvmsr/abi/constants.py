# SPDX-License-Identifier: Apache-2.0
"""
Constants
---------

Capabilities, exit reasons and flags. Source: Linux include/uapi/linux/kvm.h and
arch/x86/include/uapi/asm/kvm.h. The C name of an enumeration's member is the enumeration's
:data:`C_PREFIX` followed by the member's name.
"""

import enum
from typing import Final

KVM_API_VERSION: Final = 12
MAX_IO_MSRS: Final = 255
"""Most entries that one KVM_GET_MSRS or KVM_SET_MSRS accepts; the kernel refuses 256."""
MSR_FILTER_MAX_RANGES: Final = 16
MSR_FILTER_MAX_BITMAP_SIZE: Final = 0x600
"""Largest bitmap of a range, in bytes; a range has at most 0x3000 MSRs."""
MSR_FILTER_MAX_MSRS: Final = 8 * MSR_FILTER_MAX_BITMAP_SIZE
NR_IOAPIC_PINS: Final = 24


class Cap(enum.IntEnum):
    """KVM capabilities (KVM_CAP_*)."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    HYPERV = 44
    HYPERV_VAPIC = 45
    HYPERV_SPIN = 46
    DEBUGREGS = 50
    ENABLE_CAP = 54
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    EXT_EMUL_CPUID = 95
    HYPERV_TIME = 96
    ENABLE_CAP_VM = 98
    CHECK_EXTENSION_VM = 105
    DISABLE_QUIRKS = 116
    X86_SMM = 117
    SPLIT_IRQCHIP = 121
    HYPERV_SYNIC = 123
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    HYPERV_SYNIC2 = 148
    HYPERV_VP_INDEX = 149
    GET_MSR_FEATURES = 153
    HYPERV_TLBFLUSH = 155
    NESTED_STATE = 157
    MSR_PLATFORM_INFO = 159
    HYPERV_SEND_IPI = 161
    EXCEPTION_PAYLOAD = 164
    HYPERV_CPUID = 167
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    ENFORCE_PV_FEATURE_CPUID = 190
    SYS_HYPERV_CPUID = 191
    DIRTY_LOG_RING = 192
    SET_GUEST_DEBUG2 = 195
    HYPERV_ENFORCE_CPUID = 199
    SREGS2 = 200
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    XSAVE2 = 208
    DISABLE_QUIRKS2 = 213
    VM_TSC_CONTROL = 214
    X86_TRIPLE_FAULT_EVENT = 218


class ExitReason(enum.IntEnum):
    """Why KVM_RUN returned (KVM_EXIT_*)."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class MsrExitReason(enum.IntFlag):
    """Why KVM gave an MSR access up, and the mask that asks for it (KVM_MSR_EXIT_REASON_*)."""

    __hash__ = int.__hash__  # enum's own is written in Python, too slow for every access

    INVAL = 1
    INVALID = 1  # as kvmsr.Reason has it
    UNKNOWN = 2
    FILTER = 4


class MsrFilterFlag(enum.IntFlag):
    """Which direction a filter range is for (KVM_MSR_FILTER_*)."""

    READ = 1
    WRITE = 2


MSR_FILTER_DEFAULT_ALLOW: Final = 0
MSR_FILTER_DEFAULT_DENY: Final = 1


class InternalError(enum.IntEnum):
    """The suberror of KVM_EXIT_INTERNAL_ERROR (KVM_INTERNAL_ERROR_*)."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


EMULATION_FLAG_INSTRUCTION_BYTES: Final = 1


class Mp(enum.IntEnum):
    """What a vCPU is doing (KVM_MP_STATE_*)."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class Chip(enum.IntEnum):
    """The chips of the in-kernel interrupt controller (KVM_IRQCHIP_*)."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


class MemFlag(enum.IntFlag):
    """Flags of a memory slot (KVM_MEM_*)."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2


class GuestDbg(enum.IntFlag):
    """Flags of KVM_SET_GUEST_DEBUG (KVM_GUESTDBG_*)."""

    ENABLE = 0x1
    SINGLESTEP = 0x2
    USE_SW_BP = 0x10000
    USE_HW_BP = 0x20000
    INJECT_DB = 0x40000
    INJECT_BP = 0x80000
    BLOCKIRQ = 0x100000


class Quirk(enum.IntFlag):
    """What KVM does otherwise than a CPU, unless that is disabled (KVM_X86_QUIRK_*)."""

    LINT0_REENABLED = 1 << 0
    CD_NW_CLEARED = 1 << 1
    LAPIC_MMIO_HOLE = 1 << 2
    OUT_7E_INC_RIP = 1 << 3
    MISC_ENABLE_NO_MWAIT = 1 << 4
    FIX_HYPERCALL_INSN = 1 << 5
    MWAIT_NEVER_UD_FAULTS = 1 << 6


class SyncReg(enum.IntFlag):
    """Register groups shared through the kvm_run page (KVM_SYNC_X86_*)."""

    REGS = 1
    SREGS = 2
    EVENTS = 4


class EventFlag(enum.IntFlag):
    """Which parts of the vCPU events are valid (KVM_VCPUEVENT_VALID_*)."""

    NMI_PENDING = 0x1
    SIPI_VECTOR = 0x2
    SHADOW = 0x4
    SMM = 0x8
    PAYLOAD = 0x10
    TRIPLE_FAULT = 0x20


class IoeventfdFlag(enum.IntFlag):
    """Flags of KVM_IOEVENTFD (KVM_IOEVENTFD_FLAG_*)."""

    DATAMATCH = 1
    PIO = 2
    DEASSIGN = 4


class IrqfdFlag(enum.IntFlag):
    """Flags of KVM_IRQFD (KVM_IRQFD_FLAG_*)."""

    DEASSIGN = 1
    RESAMPLE = 2


class RoutingType(enum.IntEnum):
    """Where a GSI route leads (KVM_IRQ_ROUTING_*)."""

    IRQCHIP = 1
    MSI = 2


class SystemEvent(enum.IntEnum):
    """The type of a KVM_EXIT_SYSTEM_EVENT (KVM_SYSTEM_EVENT_*)."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6


CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1  # spelt as the header spells it
CLOCK_TSC_STABLE: Final = 2
SREGS2_FLAGS_PDPTRS_VALID: Final = 1
PIT_SPEAKER_DUMMY: Final = 1
IO_IN: Final = 0
IO_OUT: Final = 1

C_PREFIX: Final[dict[type[enum.IntEnum] | type[enum.IntFlag], str]] = {
    Cap: "KVM_CAP_",
    ExitReason: "KVM_EXIT_",
    MsrExitReason: "KVM_MSR_EXIT_REASON_",
    MsrFilterFlag: "KVM_MSR_FILTER_",
    InternalError: "KVM_INTERNAL_ERROR_",
    Mp: "KVM_MP_STATE_",
    Chip: "KVM_IRQCHIP_",
    MemFlag: "KVM_MEM_",
    GuestDbg: "KVM_GUESTDBG_",
    Quirk: "KVM_X86_QUIRK_",
    SyncReg: "KVM_SYNC_X86_",
    EventFlag: "KVM_VCPUEVENT_VALID_",
    IoeventfdFlag: "KVM_IOEVENTFD_FLAG_",
    IrqfdFlag: "KVM_IRQFD_FLAG_",
    RoutingType: "KVM_IRQ_ROUTING_",
    SystemEvent: "KVM_SYSTEM_EVENT_",
}
"""The prefix of the C names of each enumeration's members."""


def cap_name(cap: int) -> str:
    """Return KVM's name of a capability."""
    try:
        return f"KVM_CAP_{Cap(cap).name}"
    except ValueError:
        return f"capability {cap}"
