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
from kvmsr.backend.soft.cpu.instruction import MAX_LENGTH, Instruction, decode
from kvmsr.backend.soft.cpu.state import CS, SS
from kvmsr.backend.soft.cpu.vmcb import Exit
from kvmsr.backend.soft.msr.path import emulator_get_msr, kvm_emulate_rdmsr, kvm_emulate_wrmsr

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("HANDLERS", "attend", "fetch", "first_byte", "inject", "invalid", "skip", "syscall")

_RIP: Final = 16
_DB, _BP, _OF, _UD, _GP, _PF = 1, 3, 4, 6, 13, 14
_CS64: Final = 1 << 15
_TF, _RF = 1 << 8, 1 << 16
_SINGLESTEP: Final = int(GuestDbg.SINGLESTEP)  # not by the enumeration: once an access
_DR6_BS: Final = 1 << 14
_ENOSYS: Final = 1000  # KVM_ENOSYS of <linux/kvm_para.h>
_HYPERCALLS: Final = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")  # VMCALL, VMMCALL
_EFER_SCE: Final = 1
_TSC_AUX: Final = 0xC000_0103
_RDTSC: Final = b"\x0f\x31"
_LMA: Final = 1 << 10


def fetch(vcpu: "Vcpu") -> Instruction | None:
    """Return the instruction at RIP, or None where it cannot be read."""
    state = vcpu.cpu.state
    long_mode = bool(state.hflags.value & _CS64)
    address = vcpu.cpu.regs[_RIP]
    if not long_mode:
        address = state.segments[CS].base + address & 0xFFFF_FFFF
    code = vcpu.cpu.read_linear(address, MAX_LENGTH)
    if code is None:  # the next page may be missing: what is left of this one
        code = vcpu.cpu.read_linear(address, 0x1000 - address % 0x1000)
    return decode(code[:MAX_LENGTH], long_mode=long_mode) if code else None


def skip(vcpu: "Vcpu", length: int) -> bool:
    """Move RIP behind an instruction that was emulated."""
    regs = vcpu.cpu.regs
    regs[_RIP] = regs[_RIP] + length & _rip_mask(vcpu)
    return vcpu.skipped()


def _rip_mask(vcpu: "Vcpu") -> int:
    return 0xFFFF_FFFF_FFFF_FFFF if vcpu.cpu.state.hflags.value & _CS64 else 0xFFFF_FFFF


def _raise(vcpu: "Vcpu", vector: int, error_code: int = 0) -> bool:
    if deliver(vcpu.cpu, vector, error_code):
        return True
    vcpu.shut_down = True
    return False


# MSRs


def _code(vcpu: "Vcpu", size: int) -> bytes | None:
    """Return the first bytes at RIP."""
    state = vcpu.cpu.state
    rip: int = vcpu.cpu.regs[_RIP]
    if not state.hflags.value & _CS64:
        rip = state.segments[CS].base + rip & 0xFFFF_FFFF
    return vcpu.cpu.read_linear(rip, size)


def first_byte(vcpu: "Vcpu") -> int | None:
    """Return the first byte of the instruction at RIP."""
    cpu = vcpu.cpu
    rip: int = cpu.regs[_RIP]
    if not cpu.state.hflags.value & _CS64:
        rip = cpu.state.segments[CS].base + rip & 0xFFFF_FFFF
    return cpu.read_byte(rip)


def _length(vcpu: "Vcpu") -> int:
    """Return the length of a two-byte instruction with its prefixes, which are rare."""
    if first_byte(vcpu) == 0x0F:
        return 2
    instruction = fetch(vcpu)
    return instruction.start if instruction is not None else 2


def _msr(vcpu: "Vcpu", is_write: int) -> bool:
    length = _length(vcpu)
    if length > 2:
        instruction = fetch(vcpu)
        if instruction is not None and instruction.locked:
            return _raise(vcpu, _UD)
    if is_write:
        with vcpu.vm.lock:  # it may be the local APIC's
            going_on = kvm_emulate_wrmsr(vcpu, length)
            vcpu.vm.rearm()
    else:
        going_on = kvm_emulate_rdmsr(vcpu, length)
    complete = vcpu.complete_emulation
    if complete is not None and vcpu.serve is not None and vcpu.serve():
        vcpu.complete_emulation = None
        going_on = complete(vcpu)
    return going_on and (vcpu.exception is None or _raise_queued(vcpu))


# Exceptions and interrupts


def _exception(vector: int) -> Callable[["Vcpu", int], bool]:
    def handle(vcpu: "Vcpu", error_code: int) -> bool:
        if vector == _PF:
            vcpu.cpu.state.cr[2] = vcpu.cpu.fault_address
        return _raise(vcpu, vector, error_code)

    return handle


def _debug(vcpu: "Vcpu", _info: int) -> bool:
    """A single step or a breakpoint: the debugger's, or the guest's own."""
    dr6 = vcpu.cpu.state.dr[6]
    stepped = vcpu.guest_debug & _SINGLESTEP
    if vcpu.guest_debug & (GuestDbg.SINGLESTEP | GuestDbg.USE_HW_BP):
        vcpu.cpu.state.dr[6] = 0xFFFF_0FF0
        if stepped:
            vcpu.cpu.state.eflags.value &= ~_TF
        return _exit_debug(vcpu, _DB, dr6)
    vcpu.dr[6] |= dr6 & 0xE00F
    vcpu.cpu.state.dr[6] = 0xFFFF_0FF0
    return _raise(vcpu, _DB)


def _exit_debug(vcpu: "Vcpu", vector: int, dr6: int) -> bool:
    run = vcpu.run
    run.exit_reason = ExitReason.DEBUG
    arch = run.exit.debug.arch
    arch.exception, arch.pc, arch.dr6, arch.dr7 = (
        vector, vcpu.cpu.regs[_RIP], dr6, vcpu.debug_registers[7] if vcpu.guest_debug else 0,
    )  # fmt: skip
    state = vcpu.cpu.state
    if not state.hflags.value & _CS64:
        arch.pc = state.segments[CS].base + vcpu.cpu.regs[_RIP] & 0xFFFF_FFFF
    vcpu.exited = True
    return False


def skipped(vcpu: "Vcpu") -> bool:
    """
    An instruction was emulated and RIP is behind it: end the shadow, do the single step.

    :return: False, if that is a KVM_EXIT_DEBUG.
    """
    engine = vcpu.cpu
    if engine.shadow:
        engine.shadow = False
    if vcpu.guest_debug & _SINGLESTEP:
        return _exit_debug(vcpu, _DB, 0xFFFF_0FF0 | _DR6_BS)
    if engine.state.eflags.value & _TF:
        vcpu.dr[6] |= _DR6_BS
        vcpu.queue_exception(_DB, None)
        engine.open_window()
        return not engine.running or _raise_queued(vcpu)
    return True


def _raise_queued(vcpu: "Vcpu") -> bool:
    """Inject what is queued now, from inside the run."""
    assert vcpu.exception is not None
    (vector, code), vcpu.exception = vcpu.exception, None
    return _raise(vcpu, vector, code or 0)


def _software_interrupt(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    opcode = instruction.opcode[0]
    length = instruction.start + (opcode == 0xCD)
    vector = {0xCC: _BP, 0xCE: _OF}.get(opcode) or instruction.rest[0]
    if opcode == 0xCC and vcpu.guest_debug & GuestDbg.USE_SW_BP:
        return _exit_debug(vcpu, _BP, 0)
    next_rip = vcpu.cpu.regs[_RIP] + length & _rip_mask(vcpu)
    if deliver(vcpu.cpu, vector, software=True, next_rip=next_rip):
        return True
    vcpu.shut_down = True
    return False


def _icebp(vcpu: "Vcpu", _info: int) -> bool:
    return skip(vcpu, 1) and _raise(vcpu, _DB)


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

    :return: False, if the guest has shut down.
    """
    engine = vcpu.cpu
    if vcpu.exception is not None and not _raise_queued(vcpu):
        return False
    if vcpu.nmi_pending:
        if engine.nmi_masked or engine.shadow:
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
    return skip(vcpu, _length(vcpu))


def _rdtsc(vcpu: "Vcpu", _info: int) -> bool:
    length = 2
    if _code(vcpu, 2) != _RDTSC:  # prefixes, or RDTSCP, which has the same exit here
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
        return _raise(vcpu, _UD)
    _, aux = emulator_get_msr(vcpu, _TSC_AUX)
    if vcpu.complete_emulation is not None:
        return False
    regs = vcpu.cpu.regs
    tsc = vcpu.tsc()
    regs[0], regs[2], regs[1] = tsc & 0xFFFF_FFFF, tsc >> 32, aux & 0xFFFF_FFFF
    return skip(vcpu, length)


def _hlt(vcpu: "Vcpu", _info: int) -> bool:
    vcpu.vm.clock.disturbed()
    going_on = skip(vcpu, 1)
    if vcpu.lapic is not None:
        vcpu.mp_state = Mp.HALTED
        return False
    if going_on:
        vcpu.run.exit_reason = ExitReason.HLT
        vcpu.exited = True
    return False


def _shutdown(vcpu: "Vcpu", _info: int) -> bool:
    vcpu.shut_down = True
    return False


def _undefined(vcpu: "Vcpu", _info: int = 0) -> bool:
    return _raise(vcpu, _UD)


def _general_protection(vcpu: "Vcpu", _info: int) -> bool:
    return _raise(vcpu, _GP)


def _hypercall(vcpu: "Vcpu", _info: int) -> bool:
    """VMMCALL: no hypercall is offered."""
    if vcpu.cpu.cpl:
        vcpu.cpu.regs[0] = -1 & 0xFFFF_FFFF_FFFF_FFFF  # -KVM_EPERM
    else:
        vcpu.cpu.regs[0] = -_ENOSYS & 0xFFFF_FFFF_FFFF_FFFF
    return skip(vcpu, 3)


def invalid(vcpu: "Vcpu") -> bool:
    """An instruction that the engine does not know."""
    instruction = fetch(vcpu)
    if instruction is not None and (instruction.opcode + instruction.rest[:1]) in _HYPERCALLS:
        return _hypercall(vcpu, 0)
    return _raise(vcpu, _UD)


def _write_cr4(vcpu: "Vcpu", _info: int) -> bool:
    instruction = fetch(vcpu)
    assert instruction is not None
    value = vcpu.cpu.regs[instruction.rm]
    state = vcpu.cpu.state
    if not state.hflags.value & _CS64:
        value &= 0xFFFF_FFFF
    long_mode = state.efer.value & _LMA
    if value & vcpu.cr4_reserved or (long_mode and not value & 1 << 5):
        return _raise(vcpu, _GP)
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
        return _raise(vcpu, _GP)
    return skip(vcpu, instruction.start + 1)


def _move_dr(write: bool, number: int) -> Callable[["Vcpu", int], bool]:
    def handle(vcpu: "Vcpu", _info: int) -> bool:
        instruction = fetch(vcpu)
        assert instruction is not None
        at = number
        if number in (4, 5):
            if vcpu.cpu.state.cr[4] & 8:  # CR4.DE
                return _raise(vcpu, _UD)
            at = number + 2
        if vcpu.dr[7] & 1 << 13:  # general detect
            vcpu.dr[6] |= 1 << 13
            vcpu.dr[7] &= ~(1 << 13)
            return _raise(vcpu, _DB)
        if not write:
            vcpu.cpu.regs[instruction.rm] = vcpu.dr[at]
        elif not vcpu.set_dr(at, vcpu.cpu.regs[instruction.rm]):
            return _raise(vcpu, _GP)
        return skip(vcpu, instruction.start + 1)

    return handle


def syscall(vcpu: "Vcpu") -> None:
    """SYSCALL (APM volume 3); the engine adds two to RIP afterwards."""
    engine, state = vcpu.cpu, vcpu.cpu.state
    regs = engine.regs
    if not state.efer.value & _EFER_SCE:
        _raise(vcpu, _UD)
        regs[_RIP] = regs[_RIP] - 2 & _rip_mask(vcpu)
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
    Exit.HLT: _hlt,
    Exit.SHUTDOWN: _shutdown,
    Exit.ICEBP: _icebp,
    Exit.VMMCALL: _hypercall,
    Exit.CR4_WRITE: _write_cr4,
    Exit.CR8_READ: _read_cr8,
    Exit.CR8_WRITE: _write_cr8,
    **{Exit.EXCEPTION + vector: _exception(vector) for vector in range(32)},
    Exit.EXCEPTION + _DB: _debug,
    **{
        code: _undefined
        for code in (*range(Exit.VMRUN, Exit.SKINIT + 1), Exit.MONITOR, Exit.MWAIT)
        if code != Exit.VMMCALL
    },
    **{Exit.DR_READ + number: _move_dr(False, number) for number in range(8)},
    **{Exit.DR_WRITE + number: _move_dr(True, number) for number in range(8)},
}
"""What to do at each intercept, by exit code."""
