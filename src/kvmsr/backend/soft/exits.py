# SPDX-License-Identifier: Apache-2.0
"""
Exit handlers
-------------

What the kernel does when the guest comes out of the CPU: a function for each intercept, as in
arch/x86/kvm/svm/svm.c. Each returns whether the guest goes on at once; False: to the run loop.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kvmsr.abi import ExitReason, GuestDbg, Mp
from kvmsr.backend.soft.cpu.delivery import deliver, interrupt
from kvmsr.backend.soft.cpu.state import CS, SS
from kvmsr.backend.soft.cpu.vmcb import Exit
from kvmsr.backend.soft.emulation import (
    code_at_rip,
    exit_debug,
    fetch,
    length_of,
    raise_exception,
    raise_queued,
    rip_mask,
    skip,
    tell_debug,
    trap,
)
from kvmsr.backend.soft.hypercalls import kvm_emulate_hypercall
from kvmsr.backend.soft.msr.path import emulator_get_msr, kvm_emulate_rdmsr, kvm_emulate_wrmsr

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("HANDLERS", "attend", "inject", "invalid", "syscall")

_RIP: Final = 16
_DB, _BP, _OF, _UD, _GP, _PF = 1, 3, 4, 6, 13, 14
_CS64: Final = 1 << 15
_TF, _RF = 1 << 8, 1 << 16
_SINGLESTEP: Final = int(GuestDbg.SINGLESTEP)  # not by the enumeration: once an access
_HYPERCALLS: Final = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")  # VMCALL, VMMCALL
_FORCED_EMULATION: Final = b"\x0f\x0bkvm"  # UD2 and a signature
_SOFTWARE_INTERRUPTS: Final = frozenset(b"\xcc\xcd\xce")
_ICEBP: Final = b"\xf1"
_MSR_OPCODES: Final = {b"\x0f\x32": 0, b"\x0f\x30": 1}  # RDMSR, WRMSR: whether it writes
_EFER_SCE: Final = 1
_TSC_AUX: Final = 0xC000_0103
_RDTSC: Final = b"\x0f\x31"
_LMA: Final = 1 << 10


# MSRs


def _msr(vcpu: "Vcpu", is_write: int, *, emulated: bool = False) -> bool:
    length = length_of(vcpu)
    if length > 2:
        instruction = fetch(vcpu)
        if instruction is not None and instruction.locked:
            return raise_exception(vcpu, _UD)
    if is_write:
        with vcpu.vm.lock:  # it may be the local APIC's
            going_on = kvm_emulate_wrmsr(vcpu, length, emulated=emulated)
            vcpu.vm.rearm()
    else:
        going_on = kvm_emulate_rdmsr(vcpu, length, emulated=emulated)
    complete = vcpu.complete_emulation
    if complete is not None and vcpu.serve is not None and vcpu.serve():
        vcpu.complete_emulation = None
        going_on = complete(vcpu)
    return going_on and (vcpu.exception is None or raise_queued(vcpu))


# Exceptions and interrupts


def _exception(vector: int) -> Callable[["Vcpu", int], bool]:
    def handle(vcpu: "Vcpu", error_code: int) -> bool:
        if vector == _PF:
            vcpu.cpu.state.cr[2] = vcpu.cpu.fault_address
        return raise_exception(vcpu, vector, error_code)

    return handle


def _debug(vcpu: "Vcpu", _info: int) -> bool:
    """A single step or a breakpoint: the debugger's, or the guest's own."""
    dr6 = vcpu.cpu.state.dr[6]
    stepped = vcpu.guest_debug & _SINGLESTEP
    if vcpu.guest_debug & (GuestDbg.SINGLESTEP | GuestDbg.USE_HW_BP):
        vcpu.cpu.state.dr[6] = 0xFFFF_0FF0
        if stepped:
            vcpu.cpu.state.eflags.value &= ~_TF
        by_debugger = vcpu.guest_debug & GuestDbg.USE_HW_BP
        dr7 = vcpu.debug_registers[7] if by_debugger else vcpu.dr[7]
        return exit_debug(vcpu, _DB, dr6, dr7)
    tell_debug(vcpu, dr6 & 0xE00F)
    vcpu.cpu.state.dr[6] = 0xFFFF_0FF0
    return raise_exception(vcpu, _DB)


def _software_interrupt(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    opcode = instruction.opcode[0]
    if opcode not in _SOFTWARE_INTERRUPTS:
        vcpu.cpu.flush_code()  # another vCPU has patched it: what is there now is to be executed
        return False
    length = instruction.start + (opcode == 0xCD)
    vector = {0xCC: _BP, 0xCE: _OF}.get(opcode) or instruction.rest[0]
    if opcode == 0xCC and vcpu.guest_debug & GuestDbg.USE_SW_BP:
        return exit_debug(vcpu, _BP)
    next_rip = vcpu.cpu.regs[_RIP] + length & rip_mask(vcpu)
    if deliver(vcpu.cpu, vector, software=True, next_rip=next_rip):
        return True
    vcpu.shut_down = True
    return False


def _icebp(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    vcpu.cpu.shadow = False
    regs = vcpu.cpu.regs
    regs[_RIP] = regs[_RIP] + instruction.start & rip_mask(vcpu)
    return raise_exception(vcpu, _DB)


def attend(vcpu: "Vcpu", _info: int = 0) -> bool:
    """Look for what waits for the vCPU: timers, interrupts, whoever wants it to come out."""
    vm = vcpu.vm
    with vm.lock:
        vcpu.wanted = False
        vcpu.cpu.close_window()
        if vcpu.kicked or vcpu.signalled() or vm.wants(vcpu):
            return False
        vm.run_timers()
        if not inject(vcpu):
            return False
    if vcpu.wants_window:
        if vcpu.cpu.interruptible:
            return False  # to user space
        vcpu.cpu.open_window()
    return True


def inject(vcpu: "Vcpu") -> bool:
    """
    Inject what is pending and deliverable, and open windows for the rest; under the VM's lock.

    :return: False, if the guest has shut down, or is to execute just one instruction.
    """
    engine = vcpu.cpu
    collides = vcpu.exception is not None and vcpu.queued_interrupt is not None
    if vcpu.exception is not None and not raise_queued(vcpu):
        return False
    if collides:  # user space's interrupt, which does not ask whether it may, does not get through
        if vcpu.vm.profile.completion == "svm":
            vcpu.queued_interrupt = None
        return True
    if vcpu.lapic is None and vcpu.queued_interrupt is not None:
        # It counts as injected already: it does not ask for IF, and the NMI comes on top of it.
        vector = vcpu.take_interrupt()
        if vector is not None and not interrupt(engine, vector):
            vcpu.shut_down = True
            return False
    if vcpu.nmi_pending:
        if vcpu.nmi_waits_for_shadow:
            engine.close_nmi_window()
            return False
        if engine.nmi_masked:
            engine.open_nmi_window()
        else:
            vcpu.nmi_pending -= 1
            engine.nmi_masked = True
            if not interrupt(engine, 2):
                vcpu.shut_down = True
                return False
            if vcpu.nmi_pending:
                engine.open_nmi_window()
    if not vcpu.has_interrupt():
        return True
    if engine.interruptible:
        vector = vcpu.take_interrupt()
        if vector is not None and not interrupt(engine, vector):
            vcpu.shut_down = True
            return False
    if vcpu.has_interrupt():
        engine.open_window()
    return True


def _nmi_window(vcpu: "Vcpu", _info: int) -> bool:
    with vcpu.vm.lock:
        vcpu.cpu.close_nmi_window()
        return inject(vcpu)


# Instructions


def _cpuid(vcpu: "Vcpu", _info: int) -> bool:
    regs = vcpu.cpu.regs
    leaf = vcpu.guest_cpuid(regs[0] & 0xFFFF_FFFF, regs[1] & 0xFFFF_FFFF)
    regs[0], regs[3], regs[1], regs[2] = leaf
    return skip(vcpu, length_of(vcpu))


def _rdtsc(vcpu: "Vcpu", _info: int) -> bool:
    length = 2
    if code_at_rip(vcpu, 2) != _RDTSC:  # prefixes, or RDTSCP, which has the same exit here
        instruction = fetch(vcpu)
        assert instruction is not None
        if instruction.opcode != _RDTSC:
            return _rdtscp(vcpu, instruction.start + 1)
        length = instruction.start
    regs = vcpu.cpu.regs
    tsc = vcpu.tsc()
    regs[0], regs[2] = tsc & 0xFFFF_FFFF, tsc >> 32
    return skip(vcpu, length)


def _rdtscp(vcpu: "Vcpu", length: int) -> bool:
    if not vcpu.cpuid.has("rdtscp"):
        return raise_exception(vcpu, _UD)
    _, aux = emulator_get_msr(vcpu, _TSC_AUX)
    if vcpu.complete_emulation is not None:
        return False
    regs = vcpu.cpu.regs
    tsc = vcpu.tsc()
    regs[0], regs[2], regs[1] = tsc & 0xFFFF_FFFF, tsc >> 32, aux & 0xFFFF_FFFF
    return skip(vcpu, length)


def _hlt(vcpu: "Vcpu", _info: int) -> bool:
    vcpu.vm.clock.disturbed()
    traps = vcpu.cpu.state.eflags.value & _TF
    if vcpu.lapic is not None:
        going_on = skip(vcpu, 1)
        if traps:
            return going_on  # the trap ends the HLT at once
        vcpu.mp_state = Mp.HALTED
        return False
    steps = vcpu.guest_debug & _SINGLESTEP
    if steps and vcpu.vm.profile.completion == "emulator":
        return skip(vcpu, 1)
    # It is user space's business before anybody's single step is.
    skip(vcpu, 1, steps=False)
    if traps and not steps:
        trap(vcpu)
    vcpu.run.exit_reason = ExitReason.HLT
    vcpu.exited = True
    return False


def _shutdown(vcpu: "Vcpu", _info: int) -> bool:
    vcpu.shut_down = True
    return False


def _pause(vcpu: "Vcpu", _info: int) -> bool:
    """PAUSE: who spins waits for another vCPU, so that one gets its turn."""
    return skip(vcpu, length_of(vcpu)) and not vcpu.vm.execution.contended


def _undefined(vcpu: "Vcpu", _info: int = 0) -> bool:
    """Do what handle_ud does."""
    if vcpu.vm.profile.force_emulation_prefix and code_at_rip(vcpu, 5) == _FORCED_EMULATION:
        return _emulate_forced(vcpu)
    instruction = fetch(vcpu)
    if instruction is not None:
        if instruction.opcode == _ICEBP:  # the engine does not know it
            return _icebp(vcpu, 0)
        if (instruction.opcode + instruction.rest[:1]) in _HYPERCALLS:
            return _hypercall(vcpu, 0)  # the other vendor's, which KVM emulates
    return raise_exception(vcpu, _UD)


def _emulate_forced(vcpu: "Vcpu") -> bool:
    """
    Emulate the instruction behind the prefix (EMULTYPE_TRAP_UD_FORCED).

    RDMSR and WRMSR go the emulator's way. All others are left to the CPU, which does what the
    emulator would do.
    """
    regs = vcpu.cpu.regs
    regs[_RIP] = regs[_RIP] + len(_FORCED_EMULATION) & rip_mask(vcpu)
    instruction = fetch(vcpu)
    if instruction is None or instruction.opcode not in _MSR_OPCODES:
        return True
    return _msr(vcpu, _MSR_OPCODES[instruction.opcode], emulated=True)


def _general_protection(vcpu: "Vcpu", _info: int) -> bool:
    return raise_exception(vcpu, _GP)


def _hypercall(vcpu: "Vcpu", _info: int) -> bool:
    kvm_emulate_hypercall(vcpu)
    return skip(vcpu, 3)


def invalid(vcpu: "Vcpu") -> bool:
    """An instruction that the engine does not know."""
    return _undefined(vcpu)


def _write_cr4(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    value = vcpu.cpu.regs[instruction.rm]
    state = vcpu.cpu.state
    if not state.hflags.value & _CS64:
        value &= 0xFFFF_FFFF
    long_mode = state.efer.value & _LMA
    if value & vcpu.cr4_reserved or (long_mode and not value & 1 << 5):
        return raise_exception(vcpu, _GP)
    vcpu.cpu.write_cr4(value)
    return skip(vcpu, instruction.start + 1)


def _read_cr8(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    vcpu.cpu.regs[instruction.rm] = vcpu.get_cr8()
    return skip(vcpu, instruction.start + 1)


def _write_cr8(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    if not vcpu.set_cr8(vcpu.cpu.regs[instruction.rm]):
        return raise_exception(vcpu, _GP)
    return skip(vcpu, instruction.start + 1)


def _move_dr(write: bool, number: int) -> Callable[["Vcpu", int], bool]:
    def handle(vcpu: "Vcpu", _info: int) -> bool:
        instruction = fetch(vcpu)
        assert instruction is not None
        at = number
        if number in (4, 5):
            if vcpu.cpu.state.cr[4] & 8:  # CR4.DE
                return raise_exception(vcpu, _UD)
            at = number + 2
        if vcpu.dr[7] & 1 << 13:  # general detect
            tell_debug(vcpu, 1 << 13)
            vcpu.dr[7] &= ~(1 << 13)
            return raise_exception(vcpu, _DB)
        if not write:
            vcpu.cpu.regs[instruction.rm] = vcpu.dr[at]
        elif not vcpu.set_dr(at, vcpu.cpu.regs[instruction.rm]):
            return raise_exception(vcpu, _GP)
        return skip(vcpu, instruction.start + 1)

    return handle


def syscall(vcpu: "Vcpu") -> None:
    """SYSCALL (APM volume 3); the engine adds two to RIP afterwards."""
    engine, state = vcpu.cpu, vcpu.cpu.state
    regs = engine.regs
    if not state.efer.value & _EFER_SCE:
        raise_exception(vcpu, _UD)
        regs[_RIP] = regs[_RIP] - 2 & rip_mask(vcpu)
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
    if flags & _TF and engine.rflags & _TF:
        vcpu.queue_exception(_DB, None)
        engine.open_window()


def _flat(segment: Any, selector: int, flags: int) -> None:
    segment.selector, segment.base, segment.limit, segment.flags = selector, 0, 0xFFFF_FFFF, flags


HANDLERS: Final[dict[int, Callable[["Vcpu", int], bool]]] = {
    Exit.MSR: _msr,
    Exit.INTR: attend,
    Exit.SMI: attend,
    Exit.NMI: _nmi_window,
    Exit.CPUID: _cpuid,
    Exit.RDTSC: _rdtsc,
    Exit.RDPMC: _general_protection,
    Exit.SWINT: _software_interrupt,
    Exit.PAUSE: _pause,
    Exit.HLT: _hlt,
    Exit.SHUTDOWN: _shutdown,
    Exit.ICEBP: _icebp,
    Exit.VMMCALL: _hypercall,
    Exit.CR4_WRITE: _write_cr4,
    Exit.CR8_READ: _read_cr8,
    Exit.CR8_WRITE: _write_cr8,
    **{Exit.EXCEPTION + vector: _exception(vector) for vector in range(32)},
    Exit.EXCEPTION + _DB: _debug,
    Exit.EXCEPTION + _UD: _undefined,
    **{
        code: _undefined
        for code in (*range(Exit.VMRUN, Exit.SKINIT + 1), Exit.MONITOR, Exit.MWAIT)
        if code != Exit.VMMCALL
    },
    **{Exit.DR_READ + number: _move_dr(False, number) for number in range(8)},
    **{Exit.DR_WRITE + number: _move_dr(True, number) for number in range(8)},
}
"""What to do at each intercept, by exit code."""
