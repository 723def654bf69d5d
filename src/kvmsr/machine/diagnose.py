# SPDX-License-Identifier: Apache-2.0
"""
Diagnosis
---------

Explains where a vCPU is and why it cannot continue.
"""

from typing import Final

from kvmsr.abi import Mp, cpu
from kvmsr.errors import KvmsrError
from kvmsr.kvm import Vcpu, Vm
from kvmsr.kvm.exits import EmulationFailure, FailEntry, Internal
from kvmsr.session import Position

__all__ = ("explain_emulation_failure", "explain_internal", "where")

_LONGEST = 15
_PAGE = 4096
_PE: Final = 1  # CR0
_LMA: Final = 1 << 10  # EFER
_IF, _VM = 1 << 9, 1 << 17  # RFLAGS
_STATES: Final = {
    Mp.HALTED: "halted",
    Mp.UNINITIALIZED: "waits for INIT",
    Mp.INIT_RECEIVED: "waits for SIPI",
}


def where(vcpu: Vcpu) -> Position:
    """Return where *vcpu* is. It must not be running."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    bits = 64 if sregs.cs.l else 32 if sregs.cs.db else 16
    return Position(
        vcpu=vcpu.id,
        rip=regs.rip,
        linear=regs.rip if bits == 64 else sregs.cs.base + regs.rip & 0xFFFFFFFF,
        mode=_mode(sregs, regs.rflags),
        bits=bits,
        cpl=sregs.ss.dpl if sregs.cr0 & _PE else 0,
        state=_STATES.get(vcpu.get_mp_state(), "running"),
        interrupts=bool(regs.rflags & _IF),
    )


def _mode(sregs: cpu.Sregs, rflags: int) -> str:
    if sregs.efer & _LMA:
        return "long"
    if not sregs.cr0 & _PE:
        return "real"
    return "virtual-8086" if rflags & _VM else "protected"


def _read(vm: Vm, vcpu: Vcpu, linear: int) -> bytes:
    code = b""
    while len(code) < _LONGEST:
        address = linear + len(code)
        count = min(_LONGEST - len(code), _PAGE - address % _PAGE)
        try:
            physical = vcpu.translate(address)
            if physical is None:
                break
            code += bytes(vm.memory_at(physical, count))
        except KvmsrError:
            break
    return code


def disassemble(code: bytes, bits: int, address: int) -> tuple[bytes, str]:
    """Return bytes and text of the first instruction in *code*; the text is "" if it is invalid."""
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    for one in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, address, 1):
        return bytes(one.bytes), f"{one.mnemonic} {one.op_str}".strip()
    return code, ""


def explain_emulation_failure(vm: Vm, vcpu: Vcpu, exit_: EmulationFailure) -> str:
    """Return which instruction KVM could not emulate, and what that means."""
    place = where(vcpu)
    there = exit_.instruction or _read(vm, vcpu, place.linear)
    code, text = disassemble(there, place.bits, place.linear)
    shown = code.hex(" ") or "(unreadable)"
    what = f"{text} " if text else "an instruction that the disassembler does not know "
    return (
        f"this KVM cannot emulate the instruction at RIP {place.rip:#x} ({place.bits}-bit code):"
        f" {what}[{shown}]. This is not an error of the guest: KVM has to emulate the instruction"
        " on this host and does not support it"
    )


def explain_internal(vcpu: Vcpu, exit_: Internal | FailEntry) -> str:
    """Return where KVM gave up for another reason."""
    place = where(vcpu)
    if isinstance(exit_, FailEntry):
        return (
            f"the CPU refused to enter the guest at RIP {place.rip:#x}: hardware reason"
            f" {exit_.reason:#x} on CPU {exit_.cpu}; the guest's state is invalid for this CPU"
        )
    data = " ".join(f"{word:#x}" for word in exit_.data)
    return f"KVM internal error {exit_.suberror} at RIP {place.rip:#x} (data: {data or 'none'})"
