# SPDX-License-Identifier: Apache-2.0
"""
What exit handlers share
------------------------

Looking at the instruction that the guest came out at, getting behind it, and raising exceptions.
"""

from typing import TYPE_CHECKING, Final

from kvmsr.abi import ExitReason, GuestDbg
from kvmsr.backend.soft import events
from kvmsr.backend.soft.cpu.delivery import deliver
from kvmsr.backend.soft.cpu.instruction import MAX_LENGTH, Instruction, decode
from kvmsr.backend.soft.cpu.state import CS

if TYPE_CHECKING:
    from kvmsr.backend.soft.vcpu import Vcpu

__all__ = (
    "code_at_rip",
    "exit_debug",
    "fetch",
    "first_byte",
    "length_of",
    "raise_exception",
    "raise_queued",
    "rip_mask",
    "skip",
    "skipped",
    "tell_debug",
    "trap",
)

_RIP: Final = 16
_DB, _UD, _GP = 1, 6, 13
_CS64: Final = 1 << 15
_TF: Final = 1 << 8
_SINGLESTEP: Final = int(GuestDbg.SINGLESTEP)  # not by the enumeration: once an access
_DR6_BS: Final = 1 << 14
_QUEUED_BY_KVM: Final = {"pvm": range(32), "amd": (_UD, _GP)}
"""The exceptions that hardware, if there is any, does not deliver by itself (svm/svm.c)."""


def fetch(vcpu: "Vcpu") -> Instruction | None:
    """Return the instruction at RIP, or None where it cannot be read."""
    code = code_at_rip(vcpu, MAX_LENGTH)
    if code is None:  # the next page may be missing: what is left of this one
        code = code_at_rip(vcpu, 0x1000 - _linear_rip(vcpu) % 0x1000)
    long_mode = bool(vcpu.cpu.state.hflags.value & _CS64)
    return decode(code[:MAX_LENGTH], long_mode=long_mode) if code else None


def _linear_rip(vcpu: "Vcpu") -> int:
    state = vcpu.cpu.state
    rip: int = vcpu.cpu.regs[_RIP]
    return rip if state.hflags.value & _CS64 else state.segments[CS].base + rip & 0xFFFF_FFFF


def skip(vcpu: "Vcpu", length: int, *, steps: bool = True) -> bool:
    """Move RIP behind an instruction that was emulated, and do the single step if it *steps*."""
    regs = vcpu.cpu.regs
    regs[_RIP] = rip = regs[_RIP] + length & rip_mask(vcpu)
    if rip >> 47 == 1:  # over the edge of the canonical addresses: fetching faults
        return raise_exception(vcpu, _GP)
    if steps:
        return vcpu.skipped()
    vcpu.cpu.shadow = False
    return True


def rip_mask(vcpu: "Vcpu") -> int:
    """Return the bits that RIP has in the guest's mode."""
    return 0xFFFF_FFFF_FFFF_FFFF if vcpu.cpu.state.hflags.value & _CS64 else 0xFFFF_FFFF


def raise_exception(vcpu: "Vcpu", vector: int, error_code: int = 0) -> bool:
    """Deliver an exception; return False where that shuts the guest down."""
    if vector in _QUEUED_BY_KVM.get(vcpu.vm.profile.vendor, ()):
        events.remember(vcpu, vector, error_code)
    return _deliver(vcpu, vector, error_code)


def _deliver(vcpu: "Vcpu", vector: int, error_code: int, *, resume: bool = True) -> bool:
    if vcpu.guest_debug & _SINGLESTEP and vcpu.vm.profile.vendor == "pvm":
        vcpu.cpu.state.eflags.value &= ~_TF  # hardware would push the debugger's
    if deliver(vcpu.cpu, vector, error_code, resume=resume):
        return True
    vcpu.shut_down = True
    return False


def code_at_rip(vcpu: "Vcpu", size: int) -> bytes | None:
    """Return the first bytes at RIP, or None where they cannot be read."""
    return vcpu.cpu.read_linear(_linear_rip(vcpu), size)


def first_byte(vcpu: "Vcpu") -> int | None:
    """Return the first byte of the instruction at RIP, or None where it cannot be read."""
    return vcpu.cpu.read_byte(_linear_rip(vcpu))


def length_of(vcpu: "Vcpu") -> int:
    """Return the length of a two-byte instruction with its prefixes, which are rare."""
    if first_byte(vcpu) == 0x0F:
        return 2
    instruction = fetch(vcpu)
    return instruction.start if instruction is not None else 2


def tell_debug(vcpu: "Vcpu", bits: int) -> None:
    """Put into DR6 why there is a #DB; what else was in there stays, but for breakpoints met."""
    vcpu.dr[6] = vcpu.dr[6] & ~0xF | bits


def exit_debug(vcpu: "Vcpu", vector: int, dr6: int | None = None, dr7: int | None = None) -> bool:
    """
    Fill in a KVM_EXIT_DEBUG for *vector*; return False, for the guest does not go on.

    None leaves in the page what was there.
    """
    run = vcpu.run
    run.exit_reason = ExitReason.DEBUG
    arch = run.exit.debug.arch
    arch.exception, arch.pc = vector, _linear_rip(vcpu)
    if dr6 is not None:
        arch.dr6 = dr6
    if dr7 is not None and vcpu.vm.profile.completion != "emulator":  # whose steps do not tell
        arch.dr7 = dr7
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
        return exit_debug(vcpu, _DB, 0xFFFF_0FF0 | _DR6_BS)
    if engine.state.eflags.value & _TF:
        trap(vcpu)
        engine.open_window()
        return not engine.running or raise_queued(vcpu)
    return True


def raise_queued(vcpu: "Vcpu") -> bool:
    """Inject what is queued now, from inside the run."""
    assert vcpu.exception is not None
    (vector, code), vcpu.exception = vcpu.exception, None
    events.injected(vcpu)
    return _deliver(vcpu, vector, code or 0, resume=not vcpu.last_events.from_user)


def trap(vcpu: "Vcpu") -> None:
    """Queue the guest's own single step."""
    tell_debug(vcpu, _DR6_BS)
    vcpu.queue_exception(_DB, None)
