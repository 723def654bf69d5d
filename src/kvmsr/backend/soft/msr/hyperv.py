# SPDX-License-Identifier: Apache-2.0
"""
Hyper-V's MSRs
--------------

A kernel with CONFIG_KVM_HYPERV knows them, but gives them only to guests whose CPUID says Hyper-V;
for all others they are illegal (kvm_hv_set_msr_common and its kin of arch/x86/kvm/hyperv.c).
"""

from collections.abc import Callable
from typing import Final

from kvmsr.backend.soft.hyperv.cpuid import Bit
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
_DEBUGGER: Final = (0x4000_00FF, *range(0x4000_00F1, 0x4000_00F6))

_OS_ID, _HYPERCALL, _VP_INDEX, _RESET, _RUNTIME = (
    0x4000_0000, 0x4000_0001, 0x4000_0002, 0x4000_0003, 0x4000_0010,
)  # fmt: skip
_REF_COUNT, _REFERENCE_TSC, _TSC_FREQUENCY, _APIC_FREQUENCY = range(0x4000_0020, 0x4000_0024)
_EOI, _ICR, _TPR, _VP_ASSIST = range(0x4000_0070, 0x4000_0074)
_SYNIC: Final = (*range(0x4000_0080, 0x4000_0085), *range(0x4000_0090, 0x4000_00A0))
_STIMERS: Final = range(0x4000_00B0, 0x4000_00B8)
_CRASH: Final = range(0x4000_0100, 0x4000_0105)
_CRASH_CTL, _REENLIGHTENMENT, _EMULATION, _EMULATION_STATUS = range(0x4000_0105, 0x4000_0109)
_PV_EOI: Final = 0x4B56_4D04

_ENABLE: Final = 1
_RET: Final = b"\xc3"
_CRASH_NOTIFY: Final = 1 << 63
_APIC_HZ: Final = 1_000_000_000
_DIRECT: Final = 1 << 12
_LAPIC_REGISTERS: Final = {_EOI: 0xB0, _ICR: 0x300, _TPR: 0x80}
_MAX_VP_INDEX: Final = 1024  # KVM_MAX_VCPUS

_NEEDS: Final = {
    **dict.fromkeys((_OS_ID, _HYPERCALL), ("eax", Bit.HYPERCALL)),
    _RUNTIME: ("eax", Bit.RUNTIME),
    _REF_COUNT: ("eax", Bit.REF_COUNT),
    _VP_INDEX: ("eax", Bit.VP_INDEX),
    _RESET: ("eax", Bit.RESET),
    _REFERENCE_TSC: ("eax", Bit.REFERENCE_TSC),
    **dict.fromkeys(_SYNIC, ("eax", Bit.SYNIC)),
    **dict.fromkeys(_STIMERS, ("eax", Bit.STIMERS)),
    **dict.fromkeys((_EOI, _ICR, _TPR, _VP_ASSIST), ("eax", Bit.APIC)),
    **dict.fromkeys((_TSC_FREQUENCY, _APIC_FREQUENCY), ("eax", Bit.FREQUENCIES)),
    **dict.fromkeys(
        (_REENLIGHTENMENT, _EMULATION, _EMULATION_STATUS), ("eax", Bit.REENLIGHTENMENT)
    ),
    _TSC_INVARIANT: ("eax", Bit.TSC_INVARIANT),
    **dict.fromkeys((*_CRASH, _CRASH_CTL), ("edx", Bit.CRASH)),
    **dict.fromkeys(_DEBUGGER, ("edx", Bit.DEBUG_MSRS)),
}
"""Which feature bit allows an MSR, where that is enforced (hv_check_msr_access)."""


def listed(profile: Profile) -> tuple[int, ...]:
    """Return those that KVM_GET_MSR_INDEX_LIST names, in its order."""
    if not profile.hyperv:
        return ()
    invariant = (_TSC_INVARIANT,) if profile.hyperv_extended else ()
    return (*_LISTED, *invariant, *_DEBUGGER)


def _barred(vcpu: MsrVcpu, index: int, host: bool) -> MsrRet | None:
    """Return what comes of an access before the MSR itself is asked; None: it is."""
    profile = vcpu.vm.profile
    if not profile.hyperv or (index == _TSC_INVARIANT and not profile.hyperv_extended):
        return MsrRet.UNSUPPORTED
    if host:
        return None
    features = vcpu.hyperv.features(vcpu.cpuid)
    if not features.enabled:
        return MsrRet.INVALID
    register, bit = _NEEDS.get(index, ("eax", 0))
    allowed = not vcpu.hyperv.enforces or getattr(features, register) & bit
    return None if allowed else MsrRet.INVALID


def _read(vcpu: MsrVcpu, index: int, host: bool) -> tuple[MsrRet, int]:
    barred = _barred(vcpu, index, host)
    if barred is not None:
        return UNSUPPORTED if barred == MsrRet.UNSUPPORTED else INVALID
    value = _value(vcpu, index, host)
    return INVALID if value is None else (MsrRet.OK, value)


def _value(vcpu: MsrVcpu, index: int, host: bool) -> int | None:
    """Return a value; None: it is illegal to ask."""
    own, partition = vcpu.hyperv, vcpu.vm.hyperv
    if index in _SYNIC:
        return own.synic.read(index, host)
    if index in _STIMERS:
        number, is_count = divmod(index - _STIMERS.start, 2)
        return (own.stimers.get_count if is_count else own.stimers.get_config)(number)
    if index in _CRASH:
        return partition.crash[index - _CRASH.start]
    if index in _DEBUGGER:
        allowed = host or _debugs(vcpu)
        return getattr(partition.debugger, _DEBUGGER_FIELDS[index]) if allowed else None
    if index in _LAPIC_REGISTERS:
        return _read_lapic(vcpu, _LAPIC_REGISTERS[index])
    read = _VALUES.get(index)
    return read(vcpu) if read is not None else None


_VALUES: Final[dict[int, Callable[[MsrVcpu], int]]] = {
    _OS_ID: lambda vcpu: vcpu.vm.hyperv.guest_os_id,
    _HYPERCALL: lambda vcpu: vcpu.vm.hyperv.hypercall,
    _VP_INDEX: lambda vcpu: vcpu.hyperv.vp_index,
    _RESET: lambda vcpu: 0,
    _RUNTIME: lambda vcpu: vcpu.hyperv.runtime,
    _REF_COUNT: lambda vcpu: vcpu.vm.hyperv.time(),
    _REFERENCE_TSC: lambda vcpu: vcpu.vm.hyperv.reference.value,
    _TSC_FREQUENCY: lambda vcpu: vcpu.clock.tsc_khz * 1000,
    _APIC_FREQUENCY: lambda vcpu: _APIC_HZ,
    _VP_ASSIST: lambda vcpu: vcpu.hyperv.vapic,
    _CRASH_CTL: lambda vcpu: vcpu.vm.hyperv.crash_control,
    _REENLIGHTENMENT: lambda vcpu: vcpu.vm.hyperv.reenlightenment,
    _EMULATION: lambda vcpu: vcpu.vm.hyperv.tsc_emulation,
    _EMULATION_STATUS: lambda vcpu: vcpu.vm.hyperv.tsc_emulation_status,
    _TSC_INVARIANT: lambda vcpu: vcpu.vm.hyperv.invariant_control,
}


def _write(vcpu: MsrVcpu, index: int, value: int, host: bool) -> MsrRet:
    barred = _barred(vcpu, index, host)
    if barred is not None:
        return barred
    legal = _set(vcpu, index, value, host)
    if legal and not host:
        vcpu.hyperv.stimers.process()
    return MsrRet.OK if legal else MsrRet.INVALID


def _set(vcpu: MsrVcpu, index: int, value: int, host: bool) -> bool:
    """Set a value; return whether it is legal."""
    own = vcpu.hyperv
    if index in _SYNIC:
        legal = own.synic.write(index, value, host)
        own.asked, own.synic.written = own.synic.written or own.asked, None
        return legal
    if index in _STIMERS:
        number, is_count = divmod(index - _STIMERS.start, 2)
        if is_count:
            return own.stimers.set_count(number, value, host)
        enforced = own.enforces and not host and value & _DIRECT
        if enforced and not own.features(vcpu.cpuid).edx & Bit.DIRECT_STIMERS:
            return False
        return own.stimers.set_config(number, value, host)
    if index in _CRASH:
        vcpu.vm.hyperv.crash[index - _CRASH.start] = value
        return True
    if index in _DEBUGGER:
        return _write_debugger(vcpu, index, value, host)
    if index in _LAPIC_REGISTERS:
        return _write_lapic(vcpu, _LAPIC_REGISTERS[index], value)
    if index in (_REF_COUNT, _TSC_FREQUENCY, _APIC_FREQUENCY):
        return host  # they are read-only, but what was saved may be restored
    write = _SETTERS.get(index)
    return write is not None and write(vcpu, value, host)


def _write_os_id(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    partition = vcpu.vm.hyperv
    partition.guest_os_id = value
    if not value:
        partition.hypercall &= ~_ENABLE
    return True


def _write_hypercall(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    """Have the hypervisor write code that makes a hypercall to a page of the guest's."""
    partition = vcpu.vm.hyperv
    if not partition.guest_os_id:
        return True  # and it stays disabled
    if value & _ENABLE:
        code = vcpu.vm.profile.hypercall + _RET
        if not vcpu.vm.write_guest(value & ~0xFFF, code):
            return False
        vcpu.cpu.flush_code()
    partition.hypercall = value
    return True


def _write_vp_index(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    if not host or value & 0xFFFF_FFFF >= _MAX_VP_INDEX:
        return False
    vcpu.hyperv.vp_index = value & 0xFFFF_FFFF
    return True


def _write_reset(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    if value == 1:
        vcpu.hyperv.asked = "reset"
    return True


def _write_runtime(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    if host:
        vcpu.hyperv.runtime = value
    return host


def _write_reference(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    partition = vcpu.vm.hyperv
    partition.reference.set(value, host)
    if not host:  # else when the guest goes on: its memory may be yet to come
        partition.update(vcpu.vm)
    return True


def _write_assist(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    """Its page also holds the PV EOI word, which is all of it that KVM uses."""
    at = value & ~0xFFF
    if value & _ENABLE and not vcpu.vm.write_guest(at, bytes(4)):
        return False
    vcpu.hyperv.vapic = value
    vcpu.msrs[_PV_EOI] = at | _ENABLE if value & _ENABLE else 0
    return True


def _write_crash_control(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    if host:
        vcpu.vm.hyperv.crash_control = value & _CRASH_NOTIFY
    elif value & _CRASH_NOTIFY:
        vcpu.hyperv.asked = "crash"
    return True


def _write_reenlightenment(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    vcpu.vm.hyperv.reenlightenment = value
    return True


def _write_emulation(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    vcpu.vm.hyperv.tsc_emulation = value
    return True


def _write_emulation_status(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    if value and not host:
        return False
    vcpu.vm.hyperv.tsc_emulation_status = value
    return True


def _write_invariant(vcpu: MsrVcpu, value: int, host: bool) -> bool:
    partition = vcpu.vm.hyperv
    # A guest cannot take it back.
    if value & ~1 or (not host and partition.invariant_control and not value):
        return False
    partition.invariant_control = value
    return True


_SETTERS: Final[dict[int, Callable[[MsrVcpu, int, bool], bool]]] = {
    _OS_ID: _write_os_id,
    _HYPERCALL: _write_hypercall,
    _VP_INDEX: _write_vp_index,
    _RESET: _write_reset,
    _RUNTIME: _write_runtime,
    _REFERENCE_TSC: _write_reference,
    _VP_ASSIST: _write_assist,
    _CRASH_CTL: _write_crash_control,
    _REENLIGHTENMENT: _write_reenlightenment,
    _EMULATION: _write_emulation,
    _EMULATION_STATUS: _write_emulation_status,
    _TSC_INVARIANT: _write_invariant,
}


# The synthetic debugger

_DEBUGGER_FIELDS: Final = dict(
    zip(
        _DEBUGGER,
        ("options", "control", "status", "send_page", "recv_page", "pending_page"),
        strict=True,
    )
)


def _debugs(vcpu: MsrVcpu) -> bool:
    return bool(vcpu.hyperv.features(vcpu.cpuid).debugger & Bit.KERNEL_DEBUGGING)


def _write_debugger(vcpu: MsrVcpu, index: int, value: int, host: bool) -> bool:
    if not host and not _debugs(vcpu):
        return False
    name = _DEBUGGER_FIELDS[index]
    setattr(vcpu.vm.hyperv.debugger, name, value)
    if not host and name in ("control", "pending_page"):
        vcpu.hyperv.asked = index
    return True


# The local APIC's registers, in whatever mode it is


def _read_lapic(vcpu: MsrVcpu, register: int) -> int | None:
    lapic = vcpu.lapic
    if lapic is None or register == _LAPIC_REGISTERS[_EOI]:
        return None
    if lapic.is_x2apic:
        return lapic.x2apic_read(0x800 + (register >> 4))
    low = lapic.mmio_read(register, 4)
    if register == _LAPIC_REGISTERS[_ICR]:
        low |= lapic.mmio_read(register + 0x10, 4) << 32
    return low


def _write_lapic(vcpu: MsrVcpu, register: int, value: int) -> bool:
    lapic = vcpu.lapic
    if lapic is None:
        return False
    if lapic.is_x2apic:
        return lapic.x2apic_write(0x800 + (register >> 4), value)
    if register == _LAPIC_REGISTERS[_ICR]:
        lapic.mmio_write(register + 0x10, 4, value >> 32)
    elif value >> 32:
        return False
    lapic.mmio_write(register, 4, value & 0xFFFF_FFFF)
    return True


TABLE: Final = Handlers()
TABLE.add(_KNOWN, _read, _write)
