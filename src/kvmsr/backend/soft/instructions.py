# SPDX-License-Identifier: Apache-2.0
"""
Instructions
------------

The instructions that come out of the guest, and what KVM does for them: a function for each
intercept, as in arch/x86/kvm/svm/svm.c. Each returns whether the guest goes on at once; False: to
the run loop.
"""

from collections.abc import Callable
from typing import Any, Final

from kvmsr.abi import ExitReason, GuestDbg, Mp, Quirk
from kvmsr.backend.soft.cpu.code import code_at_rip, fetch, length_of, linear_rip, rip_mask
from kvmsr.backend.soft.cpu.delivery import deliver
from kvmsr.backend.soft.cpu.state import CS, SS
from kvmsr.backend.soft.debugging import DB, SINGLESTEP, TF
from kvmsr.backend.soft.hypercalls import kvm_emulate_hypercall
from kvmsr.backend.soft.hyperv.cpuid import Bit
from kvmsr.backend.soft.hyperv.hypercalls import is_enabled, kvm_hv_hypercall
from kvmsr.backend.soft.msr.path import emulator_get_msr, kvm_emulate_rdmsr, kvm_emulate_wrmsr
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = (
    "cpuid",
    "hlt",
    "icebp",
    "move_dr",
    "msr",
    "pause",
    "rdtsc",
    "read_cr8",
    "software_interrupt",
    "syscall",
    "undefined",
    "vmmcall",
    "write_cr4",
    "write_cr8",
)

_RIP: Final = 16
_BP, _OF, _UD, _GP, _PF = 3, 4, 6, 13, 14
_CS64: Final = 1 << 15
_RF: Final = 1 << 16
_VMMCALL: Final = b"\x0f\x01\xd9"
_HYPERCALLS: Final = (b"\x0f\x01\xc1", _VMMCALL)
_MONITOR_MWAIT: Final = (b"\x0f\x01\xc8", b"\x0f\x01\xc9")
_FORCED_EMULATION: Final = b"\x0f\x0bkvm"  # UD2 and a signature
_SOFTWARE_INTERRUPTS: Final = frozenset(b"\xcc\xcd\xce")
_ICEBP: Final = b"\xf1"
_MSR_OPCODES: Final = {b"\x0f\x32": 0, b"\x0f\x30": 1}  # RDMSR, WRMSR: whether it writes
_EFER_SCE: Final = 1
_TSC_AUX: Final = 0xC000_0103
_RDTSC: Final = b"\x0f\x31"
_DR6_DETECTED: Final = 0xFFFF_2FF0  # BD
_LMA: Final = 1 << 10
_APIC_ENABLED: Final = 1 << 11
_CPUID_APIC: Final = 1 << 9
_CPUID_POWER, _INVARIANT_TSC = 0x8000_0007, 1 << 8


# MSRs


def msr(vcpu: Vcpu, is_write: int, *, emulated: bool = False) -> bool:
    """RDMSR or WRMSR; *emulated*: in KVM's emulator."""
    length = length_of(vcpu.cpu)
    if length > 2:
        instruction = fetch(vcpu.cpu)
        if instruction is not None and instruction.locked:
            return vcpu.emulation.raise_exception(_UD)
    if is_write:
        with vcpu.vm.lock:  # it may be the local APIC's
            going_on = kvm_emulate_wrmsr(vcpu, length, emulated=emulated)
            vcpu.vm.timers.rearm()
        if vcpu.hyperv.asked is not None:
            return False  # to the run loop, which tells user space
    else:
        going_on = kvm_emulate_rdmsr(vcpu, length, emulated=emulated)
    complete = vcpu.complete_emulation
    if complete is not None and vcpu.serve is not None and vcpu.serve():
        vcpu.complete_emulation = None
        going_on = complete(vcpu)
    return going_on and (vcpu.events.exception is None or vcpu.emulation.raise_queued())


# Exceptions


def software_interrupt(vcpu: Vcpu, _info: int) -> bool:
    """INT n, INT3 or INTO."""
    instruction = fetch(vcpu.cpu)
    assert instruction is not None
    opcode = instruction.opcode[0]
    if opcode not in _SOFTWARE_INTERRUPTS:
        vcpu.cpu.flush_code()  # another vCPU has patched it: what is there now is to be executed
        return False
    length = instruction.start + (opcode == 0xCD)
    vector = {0xCC: _BP, 0xCE: _OF}.get(opcode) or instruction.rest[0]
    if opcode == 0xCC and vcpu.debugging.control & GuestDbg.USE_SW_BP:
        return vcpu.debugging.exit(_BP)
    next_rip = vcpu.cpu.regs[_RIP] + length & rip_mask(vcpu.cpu)
    if deliver(vcpu.cpu, vector, software=True, next_rip=next_rip):
        return True
    vcpu.events.shut_down = True
    return False


def icebp(vcpu: Vcpu, _info: int) -> bool:
    """INT1, a #DB that is a trap."""
    instruction = fetch(vcpu.cpu)
    assert instruction is not None
    vcpu.cpu.shadow = False
    regs = vcpu.cpu.regs
    regs[_RIP] = regs[_RIP] + instruction.start & rip_mask(vcpu.cpu)
    return vcpu.emulation.raise_exception(DB)


def undefined(vcpu: Vcpu, _info: int = 0) -> bool:
    """An undefined instruction, or one that the CPU does not know (handle_ud of x86.c)."""
    if vcpu.vm.profile.force_emulation_prefix and code_at_rip(vcpu.cpu, 5) == _FORCED_EMULATION:
        return _emulate_forced(vcpu)
    instruction = fetch(vcpu.cpu)
    if instruction is not None:
        if instruction.opcode == _ICEBP:  # the engine does not know it
            return icebp(vcpu, 0)
        code = instruction.opcode + instruction.rest[:1]
        if code in _HYPERCALLS:
            return _hypercall(vcpu, code)
        if code in _MONITOR_MWAIT and not vcpu.cpu.cpl:
            return _monitor_mwait(vcpu, instruction.start + 1)
    return vcpu.emulation.raise_exception(_UD)


def _hypercall(vcpu: Vcpu, code: bytes) -> bool:
    """
    VMCALL or VMMCALL.

    KVM overwrites the other vendor's with the CPU's own, which is then executed
    (emulator_fix_hypercall of x86.c).
    """
    own = vcpu.vm.profile.hypercall or code
    if code == own:
        if is_enabled(vcpu):
            return kvm_hv_hypercall(vcpu, len(code))
        kvm_emulate_hypercall(vcpu)
        return vcpu.emulation.skip(len(code))
    if not vcpu.vm.has_quirk(Quirk.FIX_HYPERCALL_INSN):
        return vcpu.emulation.raise_exception(_UD)
    at = linear_rip(vcpu.cpu)
    if vcpu.cpu.write_linear(at, own):
        vcpu.cpu.flush_code()
        return True
    vcpu.cpu.state.cr[2] = at
    write_to_what_is_there = 1 << 1 | 1 | (1 << 2 if vcpu.cpu.cpl == 3 else 0)
    return vcpu.emulation.raise_exception(_PF, write_to_what_is_there)


def _monitor_mwait(vcpu: Vcpu, length: int) -> bool:
    """MONITOR or MWAIT: nothing happens (kvm_emulate_monitor_mwait of x86.c)."""
    vm = vcpu.vm
    never_faults = vm.profile.vendor != "pvm" and vm.has_quirk(Quirk.MWAIT_NEVER_UD_FAULTS)
    if not never_faults and not vcpu.cpuid.has("mwait"):
        return vcpu.emulation.raise_exception(_UD)
    return vcpu.emulation.skip(length)


def _emulate_forced(vcpu: Vcpu) -> bool:
    """
    Emulate the instruction behind the prefix (EMULTYPE_TRAP_UD_FORCED).

    RDMSR and WRMSR go the emulator's way. All others are left to the CPU, which does what the
    emulator would do.
    """
    regs = vcpu.cpu.regs
    regs[_RIP] = regs[_RIP] + len(_FORCED_EMULATION) & rip_mask(vcpu.cpu)
    instruction = fetch(vcpu.cpu)
    if instruction is None or instruction.opcode not in _MSR_OPCODES:
        return True
    return msr(vcpu, _MSR_OPCODES[instruction.opcode], emulated=True)


def vmmcall(vcpu: Vcpu, _info: int) -> bool:
    """VMMCALL."""
    return _hypercall(vcpu, _VMMCALL)


# CPUID, time and sleep


def cpuid(vcpu: Vcpu, _info: int) -> bool:
    """CPUID."""
    regs = vcpu.cpu.regs
    function, index = regs[0] & 0xFFFF_FFFF, regs[1] & 0xFFFF_FFFF
    regs[0], regs[3], regs[1], edx = vcpu.cpuid.leaf(function, index)
    if function == 1 and not vcpu.apic_base & _APIC_ENABLED:
        edx &= ~_CPUID_APIC
    elif function == _CPUID_POWER and _hides_invariant_tsc(vcpu):
        edx &= ~_INVARIANT_TSC
    regs[2] = edx
    return vcpu.emulation.skip(length_of(vcpu.cpu))


def _hides_invariant_tsc(vcpu: Vcpu) -> bool:
    """Return whether a Windows guest has yet to ask for it (kvm_hv_invtsc_suppressed)."""
    features = vcpu.hyperv.features(vcpu.cpuid)
    asks = features.eax & Bit.TSC_INVARIANT and vcpu.vm.profile.hyperv_extended
    return bool(asks) and not vcpu.vm.hyperv.invariant_control & 1


def rdtsc(vcpu: Vcpu, _info: int) -> bool:
    """RDTSC or RDTSCP."""
    length = 2
    if code_at_rip(vcpu.cpu, 2) != _RDTSC:  # prefixes, or RDTSCP, which has the same exit here
        instruction = fetch(vcpu.cpu)
        assert instruction is not None
        if instruction.opcode != _RDTSC:
            return _rdtscp(vcpu, instruction.start + 1)
        length = instruction.start
    regs = vcpu.cpu.regs
    tsc = vcpu.clock.tsc()
    regs[0], regs[2] = tsc & 0xFFFF_FFFF, tsc >> 32
    return vcpu.emulation.skip(length)


def _rdtscp(vcpu: Vcpu, length: int) -> bool:
    if not vcpu.cpuid.has("rdtscp"):
        return vcpu.emulation.raise_exception(_UD)
    _, aux = emulator_get_msr(vcpu, _TSC_AUX)
    if vcpu.complete_emulation is not None:
        return False
    regs = vcpu.cpu.regs
    tsc = vcpu.clock.tsc()
    regs[0], regs[2], regs[1] = tsc & 0xFFFF_FFFF, tsc >> 32, aux & 0xFFFF_FFFF
    return vcpu.emulation.skip(length)


def hlt(vcpu: Vcpu, _info: int) -> bool:
    """HLT: the vCPU sleeps, or user space hears of it where there is no local APIC."""
    vcpu.vm.clock.disturbed()
    traps = vcpu.cpu.state.eflags.value & TF
    if vcpu.lapic is not None:
        going_on = vcpu.emulation.skip(1)
        if traps:
            return going_on  # the trap ends the HLT at once
        vcpu.mp_state = Mp.HALTED
        return False
    steps = vcpu.debugging.control & SINGLESTEP
    if steps and vcpu.vm.profile.completion == "emulator":
        return vcpu.emulation.skip(1)
    # It is user space's business before anybody's single step is.
    vcpu.emulation.skip(1, steps=False)
    if traps and not steps:
        vcpu.emulation.trap()
    return vcpu.page.exit(ExitReason.HLT)


def pause(vcpu: Vcpu, _info: int) -> bool:
    """PAUSE: who spins waits for another vCPU, so that one gets its turn."""
    return vcpu.emulation.skip(length_of(vcpu.cpu)) and not vcpu.vm.execution.contended


# Control and debug registers


def write_cr4(vcpu: Vcpu, _info: int) -> bool:
    """MOV to CR4, whose reserved bits the engine would take."""
    instruction = fetch(vcpu.cpu)
    assert instruction is not None
    value = vcpu.cpu.regs[instruction.rm]
    state = vcpu.cpu.state
    if not state.hflags.value & _CS64:
        value &= 0xFFFF_FFFF
    long_mode = state.efer.value & _LMA
    if value & vcpu.cpuid.cr4_reserved or (long_mode and not value & 1 << 5):
        return vcpu.emulation.raise_exception(_GP)
    vcpu.cpu.write_cr4(value)
    return vcpu.emulation.skip(instruction.start + 1)


def read_cr8(vcpu: Vcpu, _info: int) -> bool:
    """MOV from CR8."""
    instruction = fetch(vcpu.cpu)
    assert instruction is not None
    vcpu.cpu.regs[instruction.rm] = vcpu.get_cr8()
    return vcpu.emulation.skip(instruction.start + 1)


def write_cr8(vcpu: Vcpu, _info: int) -> bool:
    """MOV to CR8."""
    instruction = fetch(vcpu.cpu)
    assert instruction is not None
    if not vcpu.set_cr8(vcpu.cpu.regs[instruction.rm]):
        return vcpu.emulation.raise_exception(_GP)
    return vcpu.emulation.skip(instruction.start + 1)


def move_dr(write: bool, number: int) -> Callable[[Vcpu, int], bool]:
    """MOV to or from debug register *number*."""

    def handle(vcpu: Vcpu, _info: int) -> bool:
        instruction = fetch(vcpu.cpu)
        assert instruction is not None
        at = number
        if number in (4, 5):
            if vcpu.cpu.state.cr[4] & 8:  # CR4.DE
                return vcpu.emulation.raise_exception(_UD)
            at = number + 2
        if vcpu.debugging.detects_moves:
            return vcpu.debugging.exit(DB, _DR6_DETECTED, vcpu.debugging.dr7)
        if vcpu.debugging.dr[7] & 1 << 13:  # general detect
            vcpu.debugging.note(1 << 13)
            vcpu.debugging.dr[7] &= ~(1 << 13)
            return vcpu.emulation.raise_exception(DB)
        if not write:
            vcpu.cpu.regs[instruction.rm] = vcpu.debugging.dr[at]
        elif not vcpu.debugging.set_dr(at, vcpu.cpu.regs[instruction.rm]):
            return vcpu.emulation.raise_exception(_GP)
        # Breakpoints on data are not the engine's: the run loop sees to them.
        return vcpu.emulation.skip(instruction.start + 1) and not vcpu.debugging.watched

    return handle


# SYSCALL


def syscall(vcpu: Vcpu) -> None:
    """SYSCALL (APM volume 3); the engine adds two to RIP afterwards."""
    engine, state = vcpu.cpu, vcpu.cpu.state
    regs = engine.regs
    if not state.efer.value & _EFER_SCE:
        vcpu.emulation.raise_exception(_UD)
        regs[_RIP] = regs[_RIP] - 2 & rip_mask(vcpu.cpu)
        return
    star = state.msr(0xC000_0081).value
    selector = star >> 32 & 0xFFFC
    flags = engine.rflags & ~_RF
    if state.efer.value & _LMA:
        in_long_mode = state.hflags.value & _CS64
        regs[1] = regs[_RIP] + 2
        regs[11] = flags
        target = state.msr(0xC000_0082 if in_long_mode else 0xC000_0083).value
        engine.rflags = flags & ~state.msr(0xC000_0084).value
        _flat(state.segments[CS], selector, 0xAF9B00)
        state.hflags.value = state.hflags.value & ~3 | 0x8030
    else:
        regs[1] = regs[_RIP] + 2 & 0xFFFF_FFFF
        target = star & 0xFFFF_FFFF
        engine.rflags = flags & ~(1 << 9 | 1 << 17)
        _flat(state.segments[CS], selector, 0xCF9B00)
        state.hflags.value = state.hflags.value & ~3 | 0x30
    _flat(state.segments[SS], selector + 8, 0xCF9300)
    regs[_RIP] = target - 2 & 0xFFFF_FFFF_FFFF_FFFF
    if flags & TF and engine.rflags & TF:
        vcpu.queue_exception(DB, None)
        engine.open_window()


def _flat(segment: Any, selector: int, flags: int) -> None:
    segment.selector, segment.base, segment.limit, segment.flags = selector, 0, 0xFFFF_FFFF, flags
