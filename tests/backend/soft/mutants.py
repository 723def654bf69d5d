# SPDX-License-Identifier: Apache-2.0
"""
Defects that the interface had on its way into Linux, to be had by the soft backend for a moment.

M1  the #GP also skips the instruction
M2  a read's data is not cleared before user space sees it
M3  nor is the padding
M4  a completion is not forgotten once it is done
M5  an emulated instruction is skipped like an intercepted one
M6  reads inside other instructions are filtered and deflected
"""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from kvmsr.backend.soft import instructions, run
from kvmsr.backend.soft.msr import path

__all__ = ("MUTANTS", "mutated")


def skip_at_fault(original):
    def complete(vcpu, is_read):
        length, next_rip, _ = vcpu.deferred
        if vcpu.run.exit.msr.error:
            path._skip(vcpu, path._next_rip(vcpu, length) if next_rip is None else next_rip)
        return original(vcpu, is_read)

    return complete


def keep_data(original):
    def user_space(vcpu, exit_reason, index, data, *rest):
        data = vcpu.run.exit.msr.data if exit_reason == path._RDMSR else data
        return original(vcpu, exit_reason, index, data, *rest)

    return user_space


def keep_padding(original):
    def user_space(vcpu, *rest):
        padding = bytes(vcpu.run.exit.msr.pad)
        asked = original(vcpu, *rest)
        vcpu.run.exit.msr.pad[:] = padding
        return asked

    return user_space


def complete_again(original):
    def complete(vcpu, is_read):
        vcpu.complete_emulation = path._complete_rdmsr if is_read else path._complete_wrmsr
        return original(vcpu, is_read)

    return complete


def not_in_this_run(original):
    """What is left over is done again at the next KVM_RUN, but it does not end this one."""

    def enter_guest(vcpu):
        left_over, vcpu.complete_emulation = vcpu.complete_emulation, None
        going_on = original(vcpu)
        if going_on:
            vcpu.complete_emulation = left_over
        return going_on

    return enter_guest


def forget_next_rip(original):
    def defer(vcpu, length, emulated):
        original(vcpu, length, emulated)
        if vcpu.deferred[2] is not None:  # RFLAGS, which only the emulator puts by
            vcpu.deferred = length, None, None

    return defer


def filter_emulator(_original):
    def get_msr(vcpu, index):
        result, value = path.kvm_get_msr_with_filter(vcpu, index)
        if result:
            path._defer(vcpu, 0, True)
            path.kvm_msr_user_space(vcpu, path._RDMSR, index, 0, path._complete_rdmsr, result)
        return result, value

    return get_msr


MUTANTS = {
    "M1": ((path, "_complete", skip_at_fault),),
    "M2": ((path, "kvm_msr_user_space", keep_data),),
    "M3": ((path, "kvm_msr_user_space", keep_padding),),
    "M4": ((path, "_complete", complete_again), (run, "_enter_guest", not_in_this_run)),
    "M5": ((path, "_defer", forget_next_rip),),
    "M6": (
        (path, "emulator_get_msr", filter_emulator),
        (instructions, "emulator_get_msr", filter_emulator),
    ),
}


@contextmanager
def mutated(*names):
    """Have some of the defects."""
    with ExitStack() as stack:
        for name in names:
            for module, function, change in MUTANTS[name]:
                new = change(getattr(module, function))
                stack.enter_context(patch.object(module, function, new))
        yield
