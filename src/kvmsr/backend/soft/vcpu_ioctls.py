# SPDX-License-Identifier: Apache-2.0
"""
vCPU ioctls
-----------

One function an ioctl, as in kvm_vcpu_ioctl and kvm_arch_vcpu_ioctl of the kernel.
"""

import errno
import os
from collections.abc import Callable
from typing import Any, Final

from kvmsr.abi import Cap, GuestDbg, Mp, Quirk, cpu, ioctls, size_of, vm
from kvmsr.backend.soft import structs
from kvmsr.backend.soft.cpu import registers
from kvmsr.backend.soft.hyperv.cpuid import supported_hv_cpuid
from kvmsr.backend.soft.msr.common import MWAIT
from kvmsr.backend.soft.msr.cpuid import GuestCpuid
from kvmsr.backend.soft.msr.lists import kvm_get_msrs, kvm_set_msrs
from kvmsr.backend.soft.msr.mce import setup_mce
from kvmsr.backend.soft.startup import accept_events
from kvmsr.backend.soft.tables import read_cpuid, read_msrs, write_cpuid, write_msrs
from kvmsr.backend.soft.uaccess import read_struct, read_user, write_user
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("VCPU_IOCTLS",)

_DEBUG_FLAGS: Final = int(
    GuestDbg.ENABLE
    | GuestDbg.SINGLESTEP
    | GuestDbg.USE_SW_BP
    | GuestDbg.USE_HW_BP
    | GuestDbg.BLOCKIRQ
)

_MISC_ENABLE: Final = 0x1A0

Handler = Callable[[Vcpu, int], int]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _getter(structure: Any, fill: Callable[[Vcpu, Any], None]) -> Handler:
    def get(vcpu: Vcpu, arg: int) -> int:
        found = structure()
        fill(vcpu, found)
        write_user(arg, found)
        return 0

    return get


def _setter(structure: Any, take: Callable[[Vcpu, Any], None]) -> Handler:
    def set_(vcpu: Vcpu, arg: int) -> int:
        take(vcpu, read_struct(structure, arg))
        return 0

    return set_


# FPU, XSAVE, debug registers


def _get_xsave(vcpu: Vcpu, arg: int) -> int:
    fpu = cpu.Fpu()
    registers.get_fpu(vcpu.cpu, fpu)
    write_user(arg, registers.xsave_from_fpu(fpu))
    return 0


def _set_xsave(vcpu: Vcpu, arg: int) -> int:
    area = read_user(arg, size_of(cpu.Xsave))
    registers.set_fpu(vcpu.cpu, registers.fpu_from_xsave(area))
    return 0


def _get_debugregs(vcpu: Vcpu, found: Any) -> None:
    dr = vcpu.debugging.dr
    found.db[:] = dr[:4]
    found.dr6, found.dr7 = dr[6], dr[7]


def _set_debugregs(vcpu: Vcpu, given: Any) -> None:
    if given.flags or given.dr6 >> 32 or given.dr7 >> 32:
        raise _error(errno.EINVAL)
    dr = vcpu.debugging.dr
    dr[:4] = list(given.db)
    dr[6], dr[7] = given.dr6, given.dr7
    vcpu.debugging.update_breakpoints()


def _set_guest_debug(vcpu: Vcpu, given: Any) -> None:
    injects = given.control & (GuestDbg.INJECT_DB | GuestDbg.INJECT_BP)
    if injects and vcpu.events.exception is not None and not vcpu.events.last.from_user:
        raise _error(errno.EBUSY)
    if given.control & GuestDbg.INJECT_DB:
        vcpu.queue_exception(1, None)
    elif given.control & GuestDbg.INJECT_BP:
        vcpu.queue_exception(3, None)
    control = given.control & _DEBUG_FLAGS if given.control & GuestDbg.ENABLE else 0
    vcpu.debugging.set_control(control, list(given.arch.debugreg))


# Events


def _interrupt(vcpu: Vcpu, given: Any) -> None:
    if given.irq > 255:
        raise _error(errno.EINVAL)
    if vcpu.lapic is not None:
        raise _error(errno.ENXIO)
    vcpu.events.interrupt = vcpu.events.last.interrupt = given.irq


def _nmi(vcpu: Vcpu, _arg: int) -> int:
    with vcpu.vm.lock:
        vcpu.nmi()
    return 0


def _get_mp_state(vcpu: Vcpu, found: Any) -> None:
    with vcpu.vm.lock:
        accept_events(vcpu)
        found.mp_state = vcpu.mp_state


def _set_mp_state(vcpu: Vcpu, given: Any) -> None:
    allowed = {Mp.RUNNABLE, Mp.UNINITIALIZED, Mp.INIT_RECEIVED, Mp.HALTED}
    if vcpu.lapic is None:
        allowed = {Mp.RUNNABLE}
    if given.mp_state not in allowed:
        raise _error(errno.EINVAL)
    vcpu.mp_state = Mp(given.mp_state)


def _get_lapic(vcpu: Vcpu, found: Any) -> None:
    if vcpu.lapic is None:
        raise _error(errno.EINVAL)
    with vcpu.vm.lock:
        found.regs[:] = vcpu.lapic.get_state()


def _set_lapic(vcpu: Vcpu, arg: int) -> int:
    if vcpu.lapic is None:
        raise _error(errno.EINVAL)
    given = read_struct(cpu.LapicState, arg)
    with vcpu.vm.lock:
        vcpu.lapic.set_state(bytes(given.regs))
        vcpu.vm.timers.rearm()
    return 0


def _translate(vcpu: Vcpu, arg: int) -> int:
    found = read_struct(cpu.Translation, arg)
    with vcpu.vm.lock:
        vcpu.memory.update()
    physical = vcpu.cpu.translate(found.linear_address)
    found.physical_address = physical if physical is not None else 0xFFFF_FFFF_FFFF_FFFF
    found.valid, found.writeable, found.usermode = physical is not None, 1, 0
    write_user(arg, found)
    return 0


# CPUID and MSRs


def _set_cpuid2(vcpu: Vcpu, arg: int) -> int:
    entries = read_cpuid(arg)
    given = GuestCpuid(entries, vcpu.vm.profile)
    if not vcpu.vm.has_quirk(Quirk.MISC_ENABLE_NO_MWAIT):
        given = given.with_mwait(bool(vcpu.msrs[_MISC_ENABLE] & MWAIT))
    frozen = vcpu.vm.profile.cpuid_frozen if vcpu.has_run else "none"
    if frozen == "all" or (frozen == "changes" and given.entries != vcpu.cpuid.entries):
        raise _error(errno.EINVAL)
    vcpu.cpuid = given
    return 0


def _get_cpuid2(vcpu: Vcpu, arg: int) -> int:
    write_cpuid(arg, vcpu.cpuid.entries)
    return 0


def _get_msrs(vcpu: Vcpu, arg: int) -> int:
    with vcpu.vm.lock:
        count, entries = kvm_get_msrs(vcpu, read_msrs(arg))
    write_msrs(arg, entries)
    return count


def _set_msrs(vcpu: Vcpu, arg: int) -> int:
    with vcpu.vm.lock:
        count: int = kvm_set_msrs(vcpu, read_msrs(arg))
        vcpu.vm.timers.rearm()
    return count


def _setup_mce(vcpu: Vcpu, arg: int) -> int:
    setup_mce(vcpu, int.from_bytes(read_user(arg, 8), "little"))
    return 0


def _no_xcrs(_vcpu: Vcpu, _arg: int) -> int:
    """Fail as on a host without XSAVE, which has no extended control registers."""
    raise _error(errno.EINVAL)


def _get_hv_cpuid(vcpu: Vcpu, arg: int) -> int:
    if not vcpu.vm.profile.hyperv:
        raise _error(errno.EINVAL)
    lapic = vcpu.lapic is not None
    return write_cpuid(arg, supported_hv_cpuid(vcpu.vm.profile, lapic=lapic))


def _enable_cap(vcpu: Vcpu, given: Any) -> None:
    cap, value, hyperv = given.cap, given.args[0], vcpu.vm.profile.hyperv
    if given.flags:
        raise _error(errno.EINVAL)
    if cap == Cap.ENFORCE_PV_FEATURE_CPUID:
        vcpu.enforce_pv_cpuid = bool(value)
    elif cap == Cap.HYPERV_ENFORCE_CPUID and hyperv:
        vcpu.hyperv.enforces = bool(value)
    elif (cap == Cap.HYPERV_SYNIC or (cap == Cap.HYPERV_SYNIC2 and not value)) and hyperv:
        if vcpu.lapic is None:
            raise _error(errno.EINVAL)
        vcpu.activate_synic(keeps_pages=cap == Cap.HYPERV_SYNIC2)
    else:
        raise _error(errno.EINVAL)


def _set_signal_mask(vcpu: Vcpu, arg: int) -> int:
    if not arg:
        vcpu.signals.mask = None
        return 0
    if int.from_bytes(read_user(arg, 4), "little") != 8:
        raise _error(errno.EINVAL)
    vcpu.signals.mask = int.from_bytes(read_user(arg + 4, 8), "little")
    return 0


def _set_vapic_addr(vcpu: Vcpu, arg: int) -> int:
    """Take that there is no virtual APIC page; there is nothing here that would use one."""
    if vcpu.lapic is None or any(read_user(arg, 8)):
        raise _error(errno.EINVAL)
    return 0


def _get_tsc_khz(vcpu: Vcpu, _arg: int) -> int:
    return vcpu.vm.clock.tsc_khz


VCPU_IOCTLS: Final[dict[int, Handler]] = {
    ioctls.KVM_GET_REGS: _getter(cpu.Regs, structs.get_regs),
    ioctls.KVM_SET_REGS: _setter(cpu.Regs, structs.set_regs),
    ioctls.KVM_GET_SREGS: _getter(cpu.Sregs, structs.get_sregs),
    ioctls.KVM_SET_SREGS: _setter(cpu.Sregs, structs.set_sregs),
    ioctls.KVM_GET_SREGS2: _getter(cpu.Sregs2, structs.get_sregs2),
    ioctls.KVM_SET_SREGS2: _setter(cpu.Sregs2, structs.set_sregs2),
    ioctls.KVM_GET_FPU: _getter(cpu.Fpu, lambda vcpu, fpu: registers.get_fpu(vcpu.cpu, fpu)),
    ioctls.KVM_SET_FPU: _setter(cpu.Fpu, lambda vcpu, fpu: registers.set_fpu(vcpu.cpu, fpu)),
    ioctls.KVM_GET_XSAVE: _get_xsave,
    ioctls.KVM_SET_XSAVE: _set_xsave,
    ioctls.KVM_GET_XCRS: _no_xcrs,
    ioctls.KVM_SET_XCRS: _no_xcrs,
    ioctls.KVM_GET_DEBUGREGS: _getter(cpu.Debugregs, _get_debugregs),
    ioctls.KVM_SET_DEBUGREGS: _setter(cpu.Debugregs, _set_debugregs),
    ioctls.KVM_SET_GUEST_DEBUG: _setter(cpu.GuestDebug, _set_guest_debug),
    ioctls.KVM_GET_VCPU_EVENTS: _getter(cpu.VcpuEvents, structs.get_events),
    ioctls.KVM_SET_VCPU_EVENTS: _setter(cpu.VcpuEvents, structs.set_events),
    ioctls.KVM_INTERRUPT: _setter(cpu.Interrupt, _interrupt),
    ioctls.KVM_NMI: _nmi,
    ioctls.KVM_GET_MP_STATE: _getter(cpu.MpState, _get_mp_state),
    ioctls.KVM_SET_MP_STATE: _setter(cpu.MpState, _set_mp_state),
    ioctls.KVM_GET_LAPIC: _getter(cpu.LapicState, _get_lapic),
    ioctls.KVM_SET_LAPIC: _set_lapic,
    ioctls.KVM_SET_VAPIC_ADDR: _set_vapic_addr,
    ioctls.KVM_TRANSLATE: _translate,
    ioctls.KVM_SET_CPUID2: _set_cpuid2,
    ioctls.KVM_GET_CPUID2: _get_cpuid2,
    ioctls.KVM_GET_SUPPORTED_HV_CPUID: _get_hv_cpuid,
    ioctls.KVM_GET_MSRS: _get_msrs,
    ioctls.KVM_SET_MSRS: _set_msrs,
    ioctls.KVM_X86_SETUP_MCE: _setup_mce,
    ioctls.KVM_SET_SIGNAL_MASK: _set_signal_mask,
    ioctls.KVM_GET_TSC_KHZ: _get_tsc_khz,
    ioctls.KVM_ENABLE_CAP: _setter(vm.EnableCap, _enable_cap),
}
"""What a vCPU fd takes; KVM_RUN is apart."""
