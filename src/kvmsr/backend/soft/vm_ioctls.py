# SPDX-License-Identifier: Apache-2.0
"""
VM ioctls
---------

One function an ioctl, as in kvm_vm_ioctl and kvm_arch_vm_ioctl of the kernel.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import Final

from kvmsr.abi import Cap, ioctls, vm
from kvmsr.backend.soft.capabilities import MAX_VCPU_IDS, MAX_VCPUS, QUIRKS, check_extension
from kvmsr.backend.soft.exits import Intercepts
from kvmsr.backend.soft.irqchip import IrqChip, Pit
from kvmsr.backend.soft.msr.filter import MsrFilter
from kvmsr.backend.soft.page import RunPage
from kvmsr.backend.soft.startup import reset
from kvmsr.backend.soft.uaccess import read_struct, read_user, write_user
from kvmsr.backend.soft.vcpu import Vcpu
from kvmsr.backend.soft.vm import Vm

__all__ = ("VM_IOCTLS", "create_vcpu")

_LAST_TSS: Final = 0xFFFF_D000
_CLOCK_TSC_STABLE, _CLOCK_REALTIME, _CLOCK_HOST_TSC = 2, 4, 8

Handler = Callable[[Vm, int], int]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _set_user_memory_region(machine: Vm, arg: int) -> int:
    region = read_struct(vm.UserspaceMemoryRegion, arg)
    with machine.lock:
        machine.slots.set(region)
        machine.memory_changed()
    return 0


def _get_dirty_log(machine: Vm, arg: int) -> int:
    log = read_struct(vm.DirtyLog, arg)
    with machine.lock:
        bitmap = machine.slots.dirty_log(log.slot)
    write_user(log.dirty_bitmap, bitmap)
    return 0


def _set_tss_addr(_machine: Vm, arg: int) -> int:
    """Take the address of three pages, which only VMX needs."""
    if arg > _LAST_TSS:
        raise _error(errno.EINVAL)
    return 0


def _set_identity_map_addr(machine: Vm, arg: int) -> int:
    read_user(arg, 8)
    if machine.vcpus:
        raise _error(errno.EINVAL)
    return 0


def _set_boot_cpu_id(machine: Vm, arg: int) -> int:
    if machine.vcpus:
        raise _error(errno.EBUSY)
    machine.boot_cpu = arg
    return 0


# vCPUs


def create_vcpu(machine: Vm, vcpu_id: int, page: RunPage | None = None) -> Vcpu:
    """
    Return a new vCPU (KVM_CREATE_VCPU).

    :param page: its kvm_run page; by default one of its own.
    :raises OSError: EINVAL for too high a number or too many, EEXIST.
    """
    with machine.lock:
        machine.max_vcpu_ids = machine.max_vcpu_ids or MAX_VCPU_IDS
        if not 0 <= vcpu_id < machine.max_vcpu_ids:
            raise _error(errno.EINVAL)
        if len(machine.numbers) >= MAX_VCPUS:
            raise _error(errno.EINVAL)
        if vcpu_id in machine.numbers:
            raise _error(errno.EEXIST)
        vcpu = Vcpu(machine, vcpu_id, page or RunPage())
        vcpu.cpu.client = Intercepts(vcpu)
        reset(vcpu)
        machine.vcpus[vcpu_id] = vcpu
        machine.numbers.add(vcpu_id)
    return vcpu


def _set_max_vcpu_ids(machine: Vm, value: int) -> None:
    """Take a bound once, and before there are vCPUs; the same again does no harm."""
    if value > MAX_VCPU_IDS or (machine.max_vcpu_ids not in (0, value)):
        raise _error(errno.EINVAL)
    machine.max_vcpu_ids = value


# Interrupt controllers


def _create_irqchip(machine: Vm, _arg: int) -> int:
    with machine.lock:
        if machine.chip is not None:
            raise _error(errno.EEXIST)
        if machine.vcpus:
            raise _error(errno.EINVAL)
        machine.chip = IrqChip()
        machine.disable_quirks(machine.disabled_quirks)  # the local APICs that are to come know
    return 0


def _chip(machine: Vm) -> IrqChip:
    if machine.chip is None:
        raise _error(errno.ENXIO)
    return machine.chip


def _irq_line(machine: Vm, arg: int) -> int:
    level = read_struct(vm.IrqLevel, arg)
    with machine.lock:
        _chip(machine).set_irq(level.irq, bool(level.level))
    return 0


def _irq_line_status(machine: Vm, arg: int) -> int:
    level = read_struct(vm.IrqLevel, arg)
    with machine.lock:
        status = _chip(machine).set_irq(level.irq, bool(level.level))
    level.irq = status & 0xFFFF_FFFF  # the field doubles as the status
    write_user(arg, level)
    return 0


def _get_irqchip(machine: Vm, arg: int) -> int:
    found = read_struct(vm.Irqchip, arg)
    with machine.lock:
        _chip(machine).get_state(found)
    write_user(arg, found)
    return 0


def _set_irqchip(machine: Vm, arg: int) -> int:
    given = read_struct(vm.Irqchip, arg)
    with machine.lock:
        _chip(machine).set_state(given)
    return 0


def _set_gsi_routing(machine: Vm, arg: int) -> int:
    head = read_struct(vm.IrqRouting, arg)
    if head.flags or head.nr > 4096:
        raise _error(errno.EINVAL)
    size = len(bytes(vm.IrqRoutingEntry()))
    raw = read_user(arg + 8, head.nr * size)
    entries = [vm.IrqRoutingEntry.from_buffer_copy(raw, number * size) for number in range(head.nr)]
    with machine.lock:
        _chip(machine).set_routing(entries)
    return 0


def _signal_msi(machine: Vm, arg: int) -> int:
    msi = read_struct(vm.Msi, arg)
    if machine.chip is None or msi.flags:
        raise _error(errno.EINVAL)
    with machine.lock:
        return machine.chip.signal_msi(msi.address_lo | msi.address_hi << 32, msi.data)


def _create_pit2(machine: Vm, arg: int) -> int:
    config = read_struct(vm.PitConfig, arg)
    with machine.lock:
        if machine.pit is not None:
            raise _error(errno.EEXIST)
        if machine.chip is None:
            raise _error(errno.ENOENT)
        chip = machine.chip
        machine.pit = Pit(machine.clock, lambda level: chip.set_irq(0, level), config.flags)
        chip.attach_pit(machine.pit)
        machine.timers.add(machine.pit)
    return 0


def _pit(machine: Vm) -> Pit:
    if machine.pit is None:
        raise _error(errno.ENXIO)
    return machine.pit


def _get_pit2(machine: Vm, arg: int) -> int:
    with machine.lock:
        write_user(arg, _pit(machine).get_state())
    return 0


def _set_pit2(machine: Vm, arg: int) -> int:
    given = read_struct(vm.PitState2, arg)
    with machine.lock:
        _pit(machine).set_state(given)
        machine.timers.rearm()
    return 0


def _reinject_control(machine: Vm, arg: int) -> int:
    control = read_struct(vm.ReinjectControl, arg)
    with machine.lock:
        _pit(machine).reinject = bool(control.pit_reinject)
    return 0


# Clock


def _get_clock(machine: Vm, arg: int) -> int:
    clock, found = machine.clock, vm.ClockData()
    now = clock.now()
    found.clock = now + clock.kvmclock_ahead
    if clock.is_master:
        found.flags = _CLOCK_TSC_STABLE | _CLOCK_REALTIME | _CLOCK_HOST_TSC
        found.realtime, found.host_tsc = time.time_ns(), clock.tsc_at(now)
    write_user(arg, found)
    return 0


def _set_clock(machine: Vm, arg: int) -> int:
    given = read_struct(vm.ClockData, arg)
    if given.flags & ~(_CLOCK_TSC_STABLE | _CLOCK_REALTIME | _CLOCK_HOST_TSC):
        raise _error(errno.EINVAL)
    passed = time.time_ns() - given.realtime if given.flags & _CLOCK_REALTIME else 0
    with machine.lock:
        clock = machine.clock
        clock.is_master = bool(machine.vcpus)
        machine.hyperv.clock_changed()
        clock.kvmclock_ahead = given.clock + max(passed, 0) - clock.now()
        for vcpu in machine.vcpus.values():
            vcpu.clock_changed()
    return 0


def _get_tsc_khz(machine: Vm, _arg: int) -> int:
    return machine.clock.tsc_khz


# MSRs


def _enable_cap(machine: Vm, arg: int) -> int:
    given = read_struct(vm.EnableCap, arg)
    if given.flags:
        raise _error(errno.EINVAL)
    value = given.args[0]
    profile = machine.profile
    if given.cap == Cap.X86_USER_SPACE_MSR:
        machine.user_space_msr_mask = profile.user_space_msr_mask(value)
    elif given.cap == Cap.MSR_PLATFORM_INFO:
        machine.guest_can_read_platform_info = bool(value)
    elif given.cap == Cap.DISABLE_QUIRKS or (
        given.cap == Cap.DISABLE_QUIRKS2 and not value & ~QUIRKS
    ):
        machine.disable_quirks(value)
    elif given.cap == Cap.MAX_VCPU_ID:
        _set_max_vcpu_ids(machine, value)
    else:
        raise _error(errno.EINVAL)
    return 0


def _set_msr_filter(machine: Vm, arg: int) -> int:
    if not machine.profile.has_capability(Cap.X86_MSR_FILTER):
        raise _error(errno.ENOTTY)
    raw = read_user(arg, len(bytes(vm.MsrFilter())))
    machine.msr_filter = MsrFilter.from_bytes(raw, read_user)
    return 0


VM_IOCTLS: Final[dict[int, Handler]] = {
    ioctls.KVM_CHECK_EXTENSION: lambda machine, arg: check_extension(machine.profile, arg),
    ioctls.KVM_SET_USER_MEMORY_REGION: _set_user_memory_region,
    ioctls.KVM_GET_DIRTY_LOG: _get_dirty_log,
    ioctls.KVM_SET_TSS_ADDR: _set_tss_addr,
    ioctls.KVM_SET_IDENTITY_MAP_ADDR: _set_identity_map_addr,
    ioctls.KVM_SET_BOOT_CPU_ID: _set_boot_cpu_id,
    ioctls.KVM_CREATE_IRQCHIP: _create_irqchip,
    ioctls.KVM_IRQ_LINE: _irq_line,
    ioctls.KVM_IRQ_LINE_STATUS: _irq_line_status,
    ioctls.KVM_GET_IRQCHIP: _get_irqchip,
    ioctls.KVM_SET_IRQCHIP: _set_irqchip,
    ioctls.KVM_SET_GSI_ROUTING: _set_gsi_routing,
    ioctls.KVM_SIGNAL_MSI: _signal_msi,
    ioctls.KVM_CREATE_PIT2: _create_pit2,
    ioctls.KVM_GET_PIT2: _get_pit2,
    ioctls.KVM_SET_PIT2: _set_pit2,
    ioctls.KVM_REINJECT_CONTROL: _reinject_control,
    ioctls.KVM_GET_CLOCK: _get_clock,
    ioctls.KVM_SET_CLOCK: _set_clock,
    ioctls.KVM_GET_TSC_KHZ: _get_tsc_khz,
    ioctls.KVM_ENABLE_CAP: _enable_cap,
    ioctls.KVM_X86_SET_MSR_FILTER: _set_msr_filter,
}
"""What a VM fd takes; KVM_CREATE_VCPU is apart."""
