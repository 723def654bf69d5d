# SPDX-License-Identifier: Apache-2.0
"""
vCPU structures
---------------

The arguments of the ioctls of vCPU fds. Source: Linux arch/x86/include/uapi/asm/kvm.h and
include/uapi/linux/kvm.h; ``C_NAME`` is the name of a structure in C.
"""

import ctypes
from typing import Annotated, Any

from kvmsr.abi._layout import U8, U16, U32, U64, Layout, Overlay, flexible, layout


@layout("kvm_regs")
class Regs(Layout):
    """General-purpose registers."""

    rax: U64
    rbx: U64
    rcx: U64
    rdx: U64
    rsi: U64
    rdi: U64
    rsp: U64
    rbp: U64
    r8: U64
    r9: U64
    r10: U64
    r11: U64
    r12: U64
    r13: U64
    r14: U64
    r15: U64
    rip: U64
    rflags: U64


@layout("kvm_segment")
class Segment(Layout):
    """A segment register with its hidden part; *limit* is in bytes, regardless of *g*."""

    base: U64
    limit: U32
    selector: U16
    type: U8
    present: U8
    dpl: U8
    db: U8
    s: U8
    l: U8  # noqa: E741 - the field's name in the kernel's header
    g: U8
    avl: U8
    unusable: U8
    padding: U8


@layout("kvm_dtable")
class Dtable(Layout):
    """GDTR or IDTR."""

    base: U64
    limit: U16
    padding: Annotated[Any, ctypes.c_uint16 * 3]


@layout("kvm_sregs")
class Sregs(Layout):
    """Segment, table and control registers, EFER, APIC_BASE and the injected interrupt."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: U64
    cr2: U64
    cr3: U64
    cr4: U64
    cr8: U64
    efer: U64
    apic_base: U64
    interrupt_bitmap: Annotated[Any, ctypes.c_uint64 * 4]


@layout("kvm_sregs2")
class Sregs2(Layout):
    """:class:`Sregs` without the interrupt bitmap and with the PDPTRs of PAE paging."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: U64
    cr2: U64
    cr3: U64
    cr4: U64
    cr8: U64
    efer: U64
    apic_base: U64
    flags: U64
    pdptrs: Annotated[Any, ctypes.c_uint64 * 4]


@layout("kvm_fpu")
class Fpu(Layout):
    """x87 and SSE state."""

    fpr: Annotated[Any, (ctypes.c_uint8 * 16) * 8]
    fcw: U16
    fsw: U16
    ftwx: U8
    pad1: U8
    last_opcode: U16
    last_ip: U64
    last_dp: U64
    xmm: Annotated[Any, (ctypes.c_uint8 * 16) * 16]
    mxcsr: U32
    pad2: U32


@layout("kvm_xsave")
class Xsave(Layout):
    """The part of the XSAVE area that KVM_GET_XSAVE returns; KVM_GET_XSAVE2 may append more."""

    region: Annotated[Any, ctypes.c_uint32 * 1024]


@layout("kvm_xcr")
class Xcr(Layout):
    """One extended control register."""

    xcr: U32
    reserved: U32
    value: U64


@layout("kvm_xcrs")
class Xcrs(Layout):
    """All extended control registers; the first *nr_xcrs* are valid."""

    nr_xcrs: U32
    flags: U32
    xcrs: Annotated[Any, Xcr * 16]
    padding: Annotated[Any, ctypes.c_uint64 * 16]


@layout("kvm_debugregs")
class Debugregs(Layout):
    """DR0 to DR3, DR6 and DR7."""

    db: Annotated[Any, ctypes.c_uint64 * 4]
    dr6: U64
    dr7: U64
    flags: U64
    reserved: Annotated[Any, ctypes.c_uint64 * 9]


@layout("exception")
class EventException(Layout):
    """The exception part of :class:`VcpuEvents`."""

    injected: U8
    nr: U8
    has_error_code: U8
    pending: U8
    error_code: U32


@layout("interrupt")
class EventInterrupt(Layout):
    """The interrupt part of :class:`VcpuEvents`."""

    injected: U8
    nr: U8
    soft: U8
    shadow: U8


@layout("nmi")
class EventNmi(Layout):
    """The NMI part of :class:`VcpuEvents`."""

    injected: U8
    pending: U8
    masked: U8
    pad: U8


@layout("smi")
class EventSmi(Layout):
    """The SMI part of :class:`VcpuEvents`."""

    smm: U8
    pending: U8
    smm_inside_nmi: U8
    latched_init: U8


@layout("triple_fault")
class EventTripleFault(Layout):
    """The triple-fault part of :class:`VcpuEvents`."""

    pending: U8


@layout("kvm_vcpu_events")
class VcpuEvents(Layout):
    """Exceptions, interrupts, NMIs and SMIs that are pending or being injected."""

    exception: EventException
    interrupt: EventInterrupt
    nmi: EventNmi
    sipi_vector: U32
    flags: U32
    smi: EventSmi
    triple_fault: EventTripleFault
    reserved: Annotated[Any, ctypes.c_uint8 * 26]
    exception_has_payload: U8
    exception_payload: U64


@layout("kvm_mp_state")
class MpState(Layout):
    """Whether the vCPU runs, halts or waits for INIT or SIPI (see :class:`kvmsr.abi.Mp`)."""

    mp_state: U32


@layout("kvm_interrupt")
class Interrupt(Layout):
    """A vector to inject (user-space interrupt controllers only)."""

    irq: U32


@layout("kvm_translation")
class Translation(Layout):
    """A linear address and its translation by the vCPU's page tables."""

    linear_address: U64
    physical_address: U64
    valid: U8
    writeable: U8
    usermode: U8
    pad: Annotated[Any, ctypes.c_uint8 * 5]


@layout("kvm_lapic_state")
class LapicState(Layout):
    """The local APIC's registers, 16 bytes each, as the memory-mapped page shows them."""

    regs: Annotated[Any, ctypes.c_uint8 * 0x400]


@layout("kvm_guest_debug_arch")
class GuestDebugArch(Layout):
    """The debug registers that KVM_SET_GUEST_DEBUG uses for hardware breakpoints."""

    debugreg: Annotated[Any, ctypes.c_uint64 * 8]


@layout("kvm_guest_debug")
class GuestDebug(Layout):
    """The argument of KVM_SET_GUEST_DEBUG."""

    control: U32
    pad: U32
    arch: GuestDebugArch


@layout("kvm_debug_exit_arch")
class DebugExitArch(Layout):
    """The data of a KVM_EXIT_DEBUG."""

    exception: U32
    pad: U32
    pc: U64
    dr6: U64
    dr7: U64


@layout("kvm_x86_mce")
class Mce(Layout):
    """A machine-check event to inject."""

    status: U64
    addr: U64
    misc: U64
    mcg_status: U64
    bank: U8
    pad1: Annotated[Any, ctypes.c_uint8 * 7]
    pad2: Annotated[Any, ctypes.c_uint64 * 3]


@layout("kvm_cpuid_entry2")
class CpuidEntry2(Layout):
    """One CPUID leaf; *index* (the subleaf) is significant only if *flags* bit 0 is set."""

    function: U32
    index: U32
    flags: U32
    eax: U32
    ebx: U32
    ecx: U32
    edx: U32
    padding: Annotated[Any, ctypes.c_uint32 * 3]


@layout("kvm_cpuid2")
class Cpuid2(Layout):
    """The header of a CPUID table."""

    nent: U32
    padding: U32


@layout("kvm_msr_entry")
class MsrEntry(Layout):
    """One MSR of KVM_GET_MSRS or KVM_SET_MSRS."""

    index: U32
    reserved: U32
    data: U64


@layout("kvm_msrs")
class Msrs(Layout):
    """The header of an MSR list with values."""

    nmsrs: U32
    pad: U32


@layout("kvm_signal_mask")
class SignalMask(Layout):
    """The header of the signal mask that is in force during KVM_RUN."""

    len: U32


@layout("kvm_sync_regs")
class SyncRegs(Layout):
    """Registers shared through the kvm_run page (KVM_CAP_SYNC_REGS)."""

    regs: Regs
    sregs: Sregs
    events: VcpuEvents


@layout("s")
class SyncArea(Overlay):
    """The space for :class:`SyncRegs` in the kvm_run page."""

    regs: SyncRegs
    padding: Annotated[Any, ctypes.c_uint8 * 2048]


def cpuid2(count: int) -> Any:
    """Return an empty CPUID table with room for *count* ``entries``."""
    return flexible(Cpuid2, "entries", CpuidEntry2, count)


def msrs(count: int) -> Any:
    """Return an MSR list with room for *count* ``entries``."""
    return flexible(Msrs, "entries", MsrEntry, count)


def signal_mask() -> Any:
    """Return a signal mask with room for the kernel's eight-byte ``sigset``."""
    return flexible(SignalMask, "sigset", ctypes.c_uint8, 8)
