# SPDX-License-Identifier: Apache-2.0
"""
System and VM structures
------------------------

The arguments of the ioctls of the system fd and of VM fds. Source: Linux
arch/x86/include/uapi/asm/kvm.h and include/uapi/linux/kvm.h.
"""

import ctypes
from typing import Annotated, Any

from kvmsr.abi._layout import I16, I32, I64, U8, U16, U32, U64, Layout, Overlay, flexible, layout


@layout("kvm_userspace_memory_region")
class UserspaceMemoryRegion(Layout):
    """A memory slot; a *memory_size* of 0 deletes it. Sizes and addresses are in bytes."""

    slot: U32
    flags: U32
    guest_phys_addr: U64
    memory_size: U64
    userspace_addr: U64


@layout("kvm_dirty_log")
class DirtyLog(Layout):
    """The address where KVM_GET_DIRTY_LOG stores a slot's bitmap, with one bit per page."""

    slot: U32
    padding1: U32
    dirty_bitmap: U64


@layout("kvm_clear_dirty_log")
class ClearDirtyLog(Layout):
    """The pages that KVM_CLEAR_DIRTY_LOG marks clean."""

    slot: U32
    num_pages: U32
    first_page: U64
    dirty_bitmap: U64


@layout("kvm_irq_level")
class IrqLevel(Layout):
    """A GSI and its level; KVM_IRQ_LINE_STATUS returns a status in *irq*."""

    irq: U32
    level: U32


@layout("kvm_pic_state")
class PicState(Layout):
    """One 8259."""

    last_irr: U8
    irr: U8
    imr: U8
    isr: U8
    priority_add: U8
    irq_base: U8
    read_reg_select: U8
    poll: U8
    special_mask: U8
    init_state: U8
    auto_eoi: U8
    rotate_on_auto_eoi: U8
    special_fully_nested_mode: U8
    init4: U8
    elcr: U8
    elcr_mask: U8


@layout("kvm_ioapic_state")
class IoapicState(Layout):
    """The IOAPIC; each entry of *redirtbl* is a 64-bit redirection register."""

    base_address: U64
    ioregsel: U32
    id: U32
    irr: U32
    pad: U32
    redirtbl: Annotated[Any, ctypes.c_uint64 * 24]


@layout("chip")
class IrqchipChip(Overlay):
    """One of the three chips of KVM's interrupt controller."""

    dummy: Annotated[Any, ctypes.c_uint8 * 512]
    pic: PicState
    ioapic: IoapicState


@layout("kvm_irqchip")
class Irqchip(Layout):
    """A chip of the in-kernel interrupt controller, by *chip_id* (see :class:`kvmsr.abi.Chip`)."""

    chip_id: U32
    pad: U32
    chip: IrqchipChip


@layout("kvm_pit_config")
class PitConfig(Layout):
    """Flags for KVM_CREATE_PIT2."""

    flags: U32
    pad: Annotated[Any, ctypes.c_uint32 * 15]


@layout("kvm_pit_channel_state")
class PitChannelState(Layout):
    """One 8254 channel; *count_load_time* is in nanoseconds of the host's clock."""

    count: U32
    latched_count: U16
    count_latched: U8
    status_latched: U8
    status: U8
    read_state: U8
    write_state: U8
    write_latch: U8
    rw_mode: U8
    mode: U8
    bcd: U8
    gate: U8
    count_load_time: I64


@layout("kvm_pit_state2")
class PitState2(Layout):
    """The 8254 and its flags."""

    channels: Annotated[Any, PitChannelState * 3]
    flags: U32
    reserved: Annotated[Any, ctypes.c_uint32 * 9]


@layout("kvm_reinject_control")
class ReinjectControl(Layout):
    """Whether missed PIT ticks are delivered later."""

    pit_reinject: U8
    reserved: Annotated[Any, ctypes.c_uint8 * 31]


@layout("kvm_irqfd")
class Irqfd(Layout):
    """An eventfd that raises a GSI."""

    fd: U32
    gsi: U32
    flags: U32
    resamplefd: U32
    pad: Annotated[Any, ctypes.c_uint8 * 16]


@layout("kvm_ioeventfd")
class Ioeventfd(Layout):
    """An address at which writes signal an eventfd."""

    datamatch: U64
    addr: U64
    len: U32
    fd: I32
    flags: U32
    pad: Annotated[Any, ctypes.c_uint8 * 36]


@layout("kvm_clock_data")
class ClockData(Layout):
    """kvmclock; *clock* and *realtime* are in nanoseconds, *host_tsc* in cycles."""

    clock: U64
    flags: U32
    pad0: U32
    realtime: U64
    host_tsc: U64
    pad: Annotated[Any, ctypes.c_uint32 * 4]


@layout("kvm_msi")
class Msi(Layout):
    """A message-signalled interrupt."""

    address_lo: U32
    address_hi: U32
    data: U32
    flags: U32
    devid: U32
    pad: Annotated[Any, ctypes.c_uint8 * 12]


@layout("kvm_irq_routing_irqchip")
class RoutingIrqchip(Layout):
    """A route to a pin of a chip."""

    irqchip: U32
    pin: U32


@layout("kvm_irq_routing_msi")
class RoutingMsi(Layout):
    """A route to a message."""

    address_lo: U32
    address_hi: U32
    data: U32
    devid: U32


@layout("u")
class RoutingTarget(Overlay):
    """The target of a GSI route."""

    irqchip: RoutingIrqchip
    msi: RoutingMsi
    pad: Annotated[Any, ctypes.c_uint32 * 8]


@layout("kvm_irq_routing_entry")
class IrqRoutingEntry(Layout):
    """One GSI route; *type* is 1 for a chip's pin and 2 for a message."""

    gsi: U32
    type: U32
    flags: U32
    pad: U32
    u: RoutingTarget


@layout("kvm_irq_routing")
class IrqRouting(Layout):
    """The header of the GSI routing table."""

    nr: U32
    flags: U32


@layout("kvm_msr_list")
class MsrList(Layout):
    """The header of a list of MSR indices."""

    nmsrs: U32


@layout("kvm_msr_filter_range")
class MsrFilterRange(Layout):
    """A range of the MSR filter; bit k of *bitmap* (an address) allows MSR *base* + k."""

    flags: U32
    nmsrs: U32
    base: U32
    bitmap: U64


@layout("kvm_msr_filter")
class MsrFilter(Layout):
    """The whole MSR filter; ranges with an *nmsrs* of 0 are skipped."""

    flags: U32
    ranges: Annotated[Any, MsrFilterRange * 16]


@layout("kvm_enable_cap")
class EnableCap(Layout):
    """A capability to enable and its arguments."""

    cap: U32
    flags: U32
    args: Annotated[Any, ctypes.c_uint64 * 4]
    pad: Annotated[Any, ctypes.c_uint8 * 64]


@layout("kvm_stats_header")
class StatsHeader(Layout):
    """The header of a statistics fd; offsets are in bytes from the start of the file."""

    flags: U32
    name_size: U32
    num_desc: U32
    id_offset: U32
    desc_offset: U32
    data_offset: U32


@layout("kvm_stats_desc")
class StatsDesc(Layout):
    """One statistic: *size* 64-bit values at *offset* in the data block. Its name follows."""

    flags: U32
    exponent: I16
    size: U16
    offset: U32
    bucket_size: U32


def msr_list(count: int) -> Any:
    """Return an MSR index list with room for *count* ``indices``."""
    return flexible(MsrList, "indices", ctypes.c_uint32, count)


def irq_routing(count: int) -> Any:
    """Return a GSI routing table with room for *count* ``entries``."""
    return flexible(IrqRouting, "entries", IrqRoutingEntry, count)
