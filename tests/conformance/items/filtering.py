# SPDX-License-Identifier: Apache-2.0
"""C-160 to C-183: what a filter does."""

import threading
import time

from kvmsr.kvm import exits
from tests.conformance import code
from tests.conformance.guest import ELSEWHERE, FREE, USER_CS
from tests.conformance.outcome import DONE, FILTER, GP, INVAL, UNKNOWN, Value
from tests.conformance.registry import NotApplicable, equal, holds, item
from tests.conformance.world import READ, WRITE, X, deny, rule

EFER, STAR, LSTAR, SYSCALL_MASK = 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084
FS_BASE, GS_BASE, TSC_AUX, TSC_DEADLINE = 0xC0000100, 0xC0000101, 0xC0000103, 0x6E0
RESERVED_IN_EFER = 2
X2APIC_ENABLED = 0xFEE00D00


def everything_denied(*but):
    """Return the arguments of a filter that denies all MSRs *but* some."""
    ranges = [rule(index, 1, allowed=1) for index in but] or [rule(X + 0x100, 1)]
    return {"ranges": ranges, "default_deny": True}


@item("C-160", "filter")
def no_filter(w):
    """Without a filter nothing is denied."""
    cpu = w.cpu(mask=4)
    equal(cpu.read(X), GP)
    cpu.vm.enable_user_space_msr(7)
    equal(cpu.read(X), UNKNOWN)
    equal(cpu.read(STAR), Value(0))


@item("C-161", "filter")
def one_denied(w):
    """DEFAULT_ALLOW and a range whose bit is 0: that MSR is denied, its neighbours are not."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter([rule(X - 1, 3, allowed=0b101)])
    equal(
        [cpu.read(X + n) for n in (-2, -1, 0, 1, 2)], [UNKNOWN, UNKNOWN, FILTER, UNKNOWN, UNKNOWN]
    )


@item("C-162", "filter")
def one_allowed(w):
    """DEFAULT_DENY and a range whose bit is 1: that MSR is allowed, all others are denied."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(**everything_denied(X))
    equal(cpu.read(X), UNKNOWN)
    for index in (X - 1, X + 1, 0, STAR, 0xFFFFFFFF):
        equal(cpu.read(index), FILTER, f"read of {index:#x}")
        equal(cpu.write(index, 0), FILTER, f"write of {index:#x}")


@item("C-163", "filter")
def first_range_decides(w):
    """Of two ranges over one MSR the first decides."""
    cpu = w.cpu()
    no, yes = rule(X, 1), rule(X - 8, 16, allowed=0xFFFF)
    cpu.vm.set_msr_filter([no, yes])
    equal(cpu.read(X), FILTER)
    cpu.vm.set_msr_filter([yes, no])
    equal(cpu.read(X), UNKNOWN)


@item("C-164", "filter")
def denied_writes_alone(w):
    """A denying range for writes under DEFAULT_ALLOW lets reads through."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(deny(STAR, flags=WRITE))
    equal(cpu.read(STAR), Value(0))
    equal(cpu.write(STAR, 1), FILTER)


@item("C-165", "filter")
def allowed_writes_alone(w):
    """An allowing range for writes under DEFAULT_DENY leaves reads denied."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter([rule(STAR, 1, allowed=1, flags=WRITE)], default_deny=True)
    equal(cpu.read(STAR), FILTER)
    equal(cpu.write(STAR, 1), DONE)
    equal(cpu.get(STAR), 1)


@item("C-166", "filter")
def a_range_a_direction(w):
    """A range that denies reads and one that allows writes of the same MSR do not mix."""
    cpu = w.cpu()
    ranges = [rule(STAR, 1, flags=READ), rule(STAR, 1, allowed=1, flags=WRITE)]
    cpu.vm.set_msr_filter(ranges)
    equal(cpu.read(STAR), FILTER)
    equal(cpu.write(STAR, 2), DONE)


@item("C-170", "filter")
def end_is_exclusive(w):
    """The MSR at base + nmsrs follows the default."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter([rule(X, 65)])
    equal([cpu.read(X + n) for n in (0, 63, 64, 65)], [FILTER, FILTER, FILTER, UNKNOWN])


@item("C-172", "filter")
def x2apic_is_exempt(w):
    """0x800 to 0x8ff are never denied; 0x7ff and 0x900 are."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter([rule(0x7F0, 0x120)], default_deny=True)
    equal([cpu.read(index) for index in (0x800, 0x802, 0x8FF)], [INVAL] * 3)
    equal([cpu.read(index) for index in (0x7FF, 0x900)], [FILTER] * 2)


@item("C-173", "filter")
def x2apic_in_the_kernel(w):
    """In x2APIC mode with an in-kernel LAPIC, RDMSR 0x802 succeeds whatever the filter."""
    cpu = w.cpu(irqchip=True, cpuid=w.cpuid)
    sregs = cpu.vcpu.get_sregs()
    sregs.apic_base = X2APIC_ENABLED
    cpu.vcpu.set_sregs(sregs)
    cpu.vm.set_msr_filter([rule(0x7F0, 0x120)], default_deny=True)
    equal(cpu.read(0x802), Value(0))


@item("C-174", "filter")
def host_is_exempt(w):
    """KVM_GET_MSRS and KVM_SET_MSRS reach denied MSRs."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(**everything_denied())
    equal(cpu.set(STAR, 0x77), True)
    equal(cpu.get(STAR), 0x77)


@item("C-175", "filter")
def denied_without_mask(w):
    """Denied while no reason is enabled: #GP."""
    cpu = w.cpu(mask=0)
    cpu.vm.set_msr_filter(deny(STAR))
    equal(cpu.read(STAR), GP)
    equal(cpu.write(STAR, 1), GP)
    equal(cpu.get(STAR), 0)


@item("C-176", "filter")
def allowed_may_fail(w):
    """An allowed MSR can still be UNKNOWN or INVAL."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(**everything_denied(X, EFER))
    equal(cpu.read(X), UNKNOWN)
    equal(cpu.write(EFER, RESERVED_IN_EFER), INVAL)


@item("C-177", "filter")
def instructions_are_exempt(w):
    """
    RDTSC, RDTSCP and SYSCALL use denied MSRs without an exit.

    That is TSC, TSC_AUX, EFER, STAR, LSTAR and SYSCALL_MASK.
    """
    cpu = w.cpu()
    cpu.vm.set_msr_filter(**everything_denied())
    cpu.load(code.RDTSC + code.MARKER)
    equal(cpu.finish(), DONE, "RDTSC")
    if "rdtscp" not in w.kernel.lacks:
        cpu = w.cpu(cpuid=w.cpuid)
        holds(cpu.set(TSC_AUX, 0x77), "TSC_AUX cannot be set")
        cpu.vm.set_msr_filter(**everything_denied())
        cpu.load(code.RDTSCP + code.MARKER)
        equal(cpu.finish(), DONE, "RDTSCP")
        equal(cpu.regs.rcx, 0x77)
    cpu = w.cpu("user", cpuid=w.cpuid)
    cpu.vcpu.set_msrs({STAR: (USER_CS - 16) << 48 | 0x08 << 32, LSTAR: ELSEWHERE, SYSCALL_MASK: 0})
    cpu.vm.set_msr_filter(**everything_denied())
    cpu.put(ELSEWHERE, code.MARKER)
    cpu.load(code.SYSCALL)
    equal(cpu.finish(), DONE, "SYSCALL")
    equal(cpu.regs.rip & ~0xF, ELSEWHERE)


@item("C-179", "filter")
def passed_through_msrs(w):
    """FS_BASE and GS_BASE can be denied though the guest has them to itself, and given back."""
    cpu = w.cpu()
    for index in (FS_BASE, GS_BASE):
        equal(cpu.write(index, FREE), DONE)
        cpu.vm.set_msr_filter(deny(index))
        equal((cpu.read(index), cpu.write(index, 1)), (FILTER, FILTER))
        equal(cpu.get(index), FREE)
        cpu.vm.set_msr_filter()
        equal(cpu.read(index), Value(FREE))
        equal(cpu.write(index, 1), DONE)
        equal(cpu.get(index), 1)


@item("C-180", "filter")
def filter_reaches_a_running_vcpu(w):
    """A vCPU that spins on an allowed RDMSR exits once it is denied, without a kick."""
    cpu = w.cpu()
    cpu.load(code.loop(code.RDMSR), rcx=STAR)
    seen = []
    runner = threading.Thread(target=lambda: seen.append(cpu.run()))
    runner.start()
    time.sleep(0.05)
    equal(seen, [], "before the filter")
    cpu.vm.set_msr_filter(deny(STAR))
    runner.join()
    holds(isinstance(seen[0], exits.Rdmsr), f"{seen[0]!r}, expected Rdmsr")
    seen[0].answer(0)
    equal((seen[0].index, seen[0].reason), (STAR, FILTER.reason))


@item("C-182", "filter")
def tsc_deadline(w):
    """A denied write of TSC_DEADLINE is deflected, unless the WRMSR fast path takes it."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(deny(TSC_DEADLINE))
    equal(cpu.write(TSC_DEADLINE, 1), FILTER, "without a LAPIC, so without the fast path")
    cpu = w.cpu(irqchip=True, cpuid=w.cpuid)
    cpu.vm.set_msr_filter(deny(TSC_DEADLINE))
    outcome = cpu.write(TSC_DEADLINE, 1)
    allowed = {FILTER} if w.kernel.filters_deadline else {FILTER, DONE}
    holds(outcome in allowed, f"{outcome!r}, expected one of {allowed}")


@item("C-183", "filter")
def vmx_lists(w):
    """A denied MSR in a nested guest's VMX load and store lists."""
    raise NotApplicable(
        "needs an L1 hypervisor that uses VMX: SVM has no MSR lists, and neither kvm_pvm nor soft"
        " offers nested VMX"
    )
