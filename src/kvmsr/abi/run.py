# SPDX-License-Identifier: Apache-2.0
"""
The kvm_run page
----------------

The structure at the start of a vCPU's memory mapping. The unnamed union with an exit's data is
:class:`ExitData`. Source: Linux include/uapi/linux/kvm.h.
"""

import ctypes
from typing import Annotated, Any, Final

from kvmsr.abi._layout import U8, U16, U32, U64, Layout, Overlay, layout
from kvmsr.abi.cpu import DebugExitArch, SyncArea

PIO_PAGE_OFFSET: Final = 1
"""Number of the mapping's page, from 0, that has the data of port I/O."""


@layout("hw")
class ExitHw(Layout):
    """KVM_EXIT_UNKNOWN."""

    hardware_exit_reason: U64


@layout("fail_entry")
class ExitFailEntry(Layout):
    """KVM_EXIT_FAIL_ENTRY."""

    hardware_entry_failure_reason: U64
    cpu: U32


@layout("ex")
class ExitException(Layout):
    """KVM_EXIT_EXCEPTION."""

    exception: U32
    error_code: U32


@layout("io")
class ExitIo(Layout):
    """KVM_EXIT_IO; *data_offset* is in bytes from the start of the mapping."""

    direction: U8
    size: U8
    port: U16
    count: U32
    data_offset: U64


@layout("mmio")
class ExitMmio(Layout):
    """KVM_EXIT_MMIO."""

    phys_addr: U64
    data: Annotated[Any, ctypes.c_uint8 * 8]
    len: U32
    is_write: U8


@layout("hypercall")
class ExitHypercall(Layout):
    """KVM_EXIT_HYPERCALL."""

    nr: U64
    args: Annotated[Any, ctypes.c_uint64 * 6]
    ret: U64
    longmode: U32
    pad: U32


@layout("tpr_access")
class ExitTprAccess(Layout):
    """KVM_EXIT_TPR_ACCESS."""

    rip: U64
    is_write: U32
    pad: U32


@layout("internal")
class ExitInternal(Layout):
    """KVM_EXIT_INTERNAL_ERROR; the first *ndata* of *data* are valid."""

    suberror: U32
    ndata: U32
    data: Annotated[Any, ctypes.c_uint64 * 16]


@layout("emulation_failure")
class ExitEmulationFailure(Layout):
    """KVM_EXIT_INTERNAL_ERROR with suberror 1; the instruction is valid if *flags* bit 0 is set."""

    suberror: U32
    ndata: U32
    flags: U64
    insn_size: U8
    insn_bytes: Annotated[Any, ctypes.c_uint8 * 15]


@layout("system_event")
class ExitSystemEvent(Layout):
    """KVM_EXIT_SYSTEM_EVENT."""

    type: U32
    ndata: U32
    data: Annotated[Any, ctypes.c_uint64 * 16]


@layout("eoi")
class ExitEoi(Layout):
    """KVM_EXIT_IOAPIC_EOI."""

    vector: U8


@layout("debug")
class ExitDebug(Layout):
    """KVM_EXIT_DEBUG."""

    arch: DebugExitArch


@layout("msr")
class ExitMsr(Layout):
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR."""

    error: U8
    pad: Annotated[Any, ctypes.c_uint8 * 7]
    reason: U32
    index: U32
    data: U64


@layout("notify")
class ExitNotify(Layout):
    """KVM_EXIT_NOTIFY."""

    flags: U32


@layout("memory_fault")
class ExitMemoryFault(Layout):
    """KVM_EXIT_MEMORY_FAULT (since Linux 6.8); addresses and sizes are in bytes."""

    flags: U64
    gpa: U64
    size: U64


@layout("hyperv synic")
class HypervSynic(Layout):
    """The guest has written *msr* of its SynIC."""

    msr: U32
    pad2: U32
    control: U64
    evt_page: U64
    msg_page: U64


@layout("hyperv hcall")
class HypervHcall(Layout):
    """A hypercall that user space is to do; *result* is its answer."""

    input: U64
    result: U64
    params: Annotated[Any, ctypes.c_uint64 * 2]


@layout("hyperv syndbg")
class HypervSyndbg(Layout):
    """The guest has written *msr* of its debugger; *status* is user space's answer."""

    msr: U32
    pad2: U32
    control: U64
    status: U64
    send_page: U64
    recv_page: U64
    pending_page: U64


@layout("hyperv data")
class HypervData(Overlay):
    """The union of what there is to say."""

    synic: HypervSynic
    hcall: HypervHcall
    syndbg: HypervSyndbg


@layout("kvm_hyperv_exit")
class ExitHyperv(Layout):
    """KVM_EXIT_HYPERV; *type* is 1, 2 or 3: synic, hcall or syndbg."""

    type: U32
    pad1: U32
    u: HypervData


@layout("exit data")
class ExitData(Overlay):
    """The union of the exits' data."""

    hw: ExitHw
    fail_entry: ExitFailEntry
    ex: ExitException
    io: ExitIo
    debug: ExitDebug
    mmio: ExitMmio
    hypercall: ExitHypercall
    tpr_access: ExitTprAccess
    internal: ExitInternal
    emulation_failure: ExitEmulationFailure
    system_event: ExitSystemEvent
    eoi: ExitEoi
    msr: ExitMsr
    hyperv: ExitHyperv
    notify: ExitNotify
    memory_fault: ExitMemoryFault
    padding: Annotated[Any, ctypes.c_uint8 * 256]


@layout("kvm_run")
class Run(Layout):
    """The page that KVM_RUN and its caller share."""

    request_interrupt_window: U8
    immediate_exit: U8
    padding1: Annotated[Any, ctypes.c_uint8 * 6]
    exit_reason: U32
    ready_for_interrupt_injection: U8
    if_flag: U8
    flags: U16
    cr8: U64
    apic_base: U64
    exit: ExitData
    kvm_valid_regs: U64
    kvm_dirty_regs: U64
    s: SyncArea


IMMEDIATE_EXIT_OFFSET: Final = Run.immediate_exit.offset  # type: ignore[attr-defined]
"""Offset of *immediate_exit* in the page, in bytes; the only field that other threads may set."""
