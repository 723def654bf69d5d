# SPDX-License-Identifier: Apache-2.0
"""C-110 to C-129: privilege, and which failure is which reason."""

from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import DONE, FILTER, GP, INVAL, UD, UNKNOWN, Value
from tests.conformance.registry import equal, holds, item
from tests.conformance.world import X, deny

EFER, STAR, LSTAR = 0xC0000080, 0xC0000081, 0xC0000082
RESERVED_IN_EFER = 2
NON_CANONICAL = 1 << 63  # with 57 bits of linear address as with 48
CORE_THREAD_COUNT, FEAT_CTL = 0x35, 0x3A
PLATFORM_INFO, SMI_COUNT, SMBASE, MCG_CTL = 0xCE, 0x34, 0x9E, 0x17B
XSS, ARCH_CAPABILITIES, PERF_CAPABILITIES = 0xDA0, 0x10A, 0x345
HV_GUEST_OS_ID = 0x40000000


@item("C-110")
def user_mode(w):
    """RDMSR and WRMSR at CPL 3 are #GP(0) and never an exit, whatever mask and filter."""
    for index in (X, EFER, STAR):
        for write in (False, True):
            cpu = w.cpu("user")  # afterwards it is in its handler, at CPL 0
            if "filter" not in w.kernel.lacks:
                cpu.vm.set_msr_filter(deny(X, EFER))
            seen = cpu.write(index, 0) if write else cpu.read(index)
            equal(seen, GP, f"MSR {index:#x}")
            equal((seen.error_code, seen.rip), (0, CODE), f"MSR {index:#x}")


@item("C-111", "lock")
def lock_prefix(w):
    """LOCK RDMSR is #UD and no exit."""
    cpu = w.cpu()
    cpu.load(code.LOCK + code.RDMSR + code.MARKER, rcx=X)
    equal(cpu.finish(), UD)


@item("C-112", "reason")
def unknown(w):
    """A read or write of X has the reason UNKNOWN."""
    cpu = w.cpu()
    equal(cpu.read(X), UNKNOWN)
    equal(cpu.write(X, 0), UNKNOWN)


@item("C-113", "reason")
def invalid(w):
    """A write of EFER with a reserved bit has the reason INVAL and changes nothing."""
    cpu = w.cpu()
    before = cpu.get(EFER)
    equal(cpu.write(EFER, before | RESERVED_IN_EFER), INVAL)
    equal(cpu.get(EFER), before)


@item("C-114", "reason")
def non_canonical(w):
    """
    A write of LSTAR with a non-canonical address has the reason INVAL.

    Where the vendor module lets the guest write LSTAR by itself, KVM does not see that access;
    its own check is then seen by the host's access, which it refuses too.
    """
    cpu = w.cpu()
    if LSTAR not in w.kernel.passed_through:
        equal(cpu.write(LSTAR, NON_CANONICAL), INVAL)
    equal(cpu.set(LSTAR, NON_CANONICAL), False, "KVM_SET_MSRS")
    equal(cpu.get(LSTAR), 0)


@item("C-115", "filter")
def denied(w):
    """A denied access has the reason FILTER, even if the MSR is unknown or the value illegal."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(deny(X, EFER))
    equal(cpu.read(X), FILTER)
    equal(cpu.write(X, 0), FILTER)
    equal(cpu.write(EFER, RESERVED_IN_EFER), FILTER)


@item("C-117", "mask")
def without_unknown(w):
    """With mask 5, RDMSR X is a #GP."""
    equal(w.cpu(mask=5).read(X), GP)


@item("C-118", "mask")
def without_inval(w):
    """With mask 6, a reserved bit for EFER is a #GP."""
    equal(w.cpu(mask=6).write(EFER, RESERVED_IN_EFER), GP)


@item("C-119", "mask", "filter")
def without_filter(w):
    """With mask 3, a denied access is a #GP, even of an unknown MSR or with an illegal value."""
    cpu = w.cpu(mask=3)
    cpu.vm.set_msr_filter(deny(X, EFER))
    equal(cpu.read(X), GP)
    equal(cpu.write(EFER, RESERVED_IN_EFER), GP)


@item("C-120", "filter")
def failure_has_no_effect(w):
    """A denied or failed write leaves the MSR as it was."""
    cpu = w.cpu()
    holds(cpu.set(STAR, 0x1234), "the host cannot set STAR")
    cpu.vm.set_msr_filter(deny(STAR))
    equal(cpu.write(STAR, 0x5678), FILTER)
    equal(cpu.get(STAR), 0x1234)
    before = cpu.get(EFER)
    equal(cpu.write(EFER, RESERVED_IN_EFER), INVAL)
    equal(cpu.get(EFER), before)


@item("C-121", "reason")
def x2apic_without_lapic(w):
    """Without an in-kernel LAPIC, x2APIC accesses have the reason INVAL."""
    cpu = w.cpu()
    equal(cpu.read(0x802), INVAL)
    equal(cpu.write(0x830, 0), INVAL)


@item("C-122", "reason")
def unimplemented(w):
    """Unimplemented neighbours are UNKNOWN: 0x35, and 0x3a where the vendor is not Intel."""
    cpu = w.cpu()
    equal(cpu.read(CORE_THREAD_COUNT), UNKNOWN)
    equal(cpu.read(FEAT_CTL), Value(0) if w.kernel.vendor == "intel" else UNKNOWN)


@item("C-124", "reason")
def explicit_rules(w):
    """MSRs with a rule of their own are INVAL: writes of 0xce, 0x34, 0x9e; 0x17b without CTL_P."""
    cpu = w.cpu()
    for index in (PLATFORM_INFO, SMI_COUNT, SMBASE):
        equal(cpu.write(index, 0), INVAL, f"MSR {index:#x}")
    equal(cpu.read(MCG_CTL), INVAL)


@item("C-126", "reason")
def xss_without_xsaves(w):
    """XSS without XSAVES in CPUID: the read is INVAL; the write INVAL, or UNKNOWN when newer."""
    cpu = w.cpu()
    equal(cpu.read(XSS), INVAL)
    equal(cpu.write(XSS, 0), w.kernel.unadvertised)


@item("C-127", "reason")
def features_without_cpuid(w):
    """ARCH_CAPABILITIES and PERF_CAPABILITIES that CPUID lacks: INVAL, or UNKNOWN when newer."""
    cpu = w.cpu()
    equal(cpu.read(ARCH_CAPABILITIES), w.kernel.unadvertised)
    equal(cpu.read(PERF_CAPABILITIES), w.kernel.unadvertised)


@item("C-128", "reason")
def hyperv(w):
    """Hyper-V MSRs are INVAL where KVM has Hyper-V and CPUID does not, else UNKNOWN."""
    cpu = w.cpu()
    equal(cpu.read(HV_GUEST_OS_ID), w.kernel.hyperv)
    equal(cpu.write(HV_GUEST_OS_ID, 0), w.kernel.hyperv)


@item("C-129", "filter")
def ignore_msrs(w):
    """With ignore_msrs, X reads 0 and takes writes without an exit; INVAL and FILTER remain."""
    with w.switched(ignore_msrs=True, report_ignored_msrs=False) as ignoring:
        cpu = ignoring.cpu()
        equal(cpu.read(X), Value(0))
        equal(cpu.write(X, 1), DONE)
        equal(cpu.write(EFER, RESERVED_IN_EFER), INVAL)
        cpu.vm.set_msr_filter(deny(X))
        equal(cpu.read(X), FILTER)
