# SPDX-License-Identifier: Apache-2.0
"""C-220 to C-246: values that KVM gives, takes and refuses."""

from tests.conformance.outcome import DONE, INVAL, UNKNOWN, Value
from tests.conformance.registry import equal, holds, item
from tests.conformance.world import vendor

EFER, APIC_BASE, PAT, HWCR = 0xC0000080, 0x1B, 0x277, 0xC0010015
TSC, TSC_ADJUST, TSC_DEADLINE, TSC_AUX = 0x10, 0x3B, 0x6E0, 0xC0000103
MCG_CAP, MCG_CTL, MC0_STATUS = 0x179, 0x17B, 0x401
PLATFORM_INFO, UCODE_REV = 0xCE, 0x8B
ASYNC_PF_EN, STEAL_TIME, PV_EOI, POLL_CONTROL, MIGRATION = (
    0x4B564D02, 0x4B564D03, 0x4B564D04, 0x4B564D05, 0x4B564D08,
)  # fmt: skip
MCI_STATUS_WRITABLE = 1 << 18
LME = 1 << 8
X2APIC_ENABLED = 0xFEE00D00


@item("C-220")
def apic_base_at_reset(w):
    """APIC_BASE is 0xfee00900 on the boot CPU and 0xfee00800 on the others."""
    first, second = w.cpus(2, irqchip=True)
    equal(first.get(APIC_BASE), 0xFEE00900)
    equal(second.get(APIC_BASE), 0xFEE00800)


@item("C-221")
def pat_at_reset(w):
    """PAT is 0x0007040600070406."""
    equal(w.cpu().get(PAT), 0x0007040600070406)


@item("C-222")
def pat_types(w):
    """A PAT byte of 2, 3, or 8 and more is refused, where KVM looks."""
    cpu = w.cpu()
    for byte in (2, 3, 8, 0xFF):
        wanted = INVAL if w.kernel.checks_pat else DONE
        equal(cpu.write(PAT, byte << 24), wanted, f"type {byte}")
    equal(cpu.write(PAT, 0x0706050401000706), DONE)
    equal(cpu.read(PAT), Value(0x0706050401000706))


@item("C-223")
def machine_check_banks(w):
    """MCG_CAP is 0x20 at first: 32 banks, and none more."""
    cpu = w.cpu()
    equal(cpu.get(MCG_CAP), 0x20)
    for index in (0x400, 0x43C, 0x47F):
        holds(cpu.get(index) is not None, f"{index:#x}")
    equal(cpu.read(0x47F), Value(0))
    holds(cpu.read(0x480) != Value(0), "0x480 is a bank")


@item("C-225")
def machine_check_status(w):
    """A guest writes 0 to MCi_STATUS, and other values only with HWCR's bit 18, on AMD."""
    cpu = w.cpu(cpuid=vendor(w.cpuid, "amd"))
    equal(cpu.write(MC0_STATUS, 1), INVAL)
    equal(cpu.write(MC0_STATUS, 0), DONE)
    equal(cpu.write(HWCR, MCI_STATUS_WRITABLE), DONE)
    equal(cpu.write(MC0_STATUS, 1), DONE)
    equal(cpu.read(MC0_STATUS), Value(1))


@item("C-226")
def machine_check_control(w):
    """Without MCG_CTL_P, MCG_CTL is INVAL for the guest and 0 for the host."""
    cpu = w.cpu()
    equal(cpu.read(MCG_CTL), INVAL)
    equal(cpu.get(MCG_CTL), 0)


@item("C-227")
def mtrrs(w):
    """MTRRs: eight variable ones, and memory types and reserved bits are looked at."""
    cpu = w.cpu()
    equal(cpu.read(0xFE), Value(0x508))
    equal(cpu.read(0x210), INVAL)
    equal(cpu.write(0x200, 2), INVAL)
    equal(cpu.write(0x200, 6), DONE)
    equal(cpu.write(0x201, 0x800), DONE)
    equal(cpu.write(0x201, 0x400), INVAL)
    equal(cpu.write(0x2FF, 0xC06), DONE)
    equal(cpu.write(0x2FF, 0x1000), INVAL)
    equal(cpu.write(0x250, 0x0606060606060606), DONE)
    equal(cpu.write(0x250, 0x0606060606060602), INVAL)


@item("C-228")
def long_mode_enable(w):
    """EFER.LME does not change while paging is on, except by the host."""
    cpu = w.cpu(cpuid=w.cpuid)
    value = cpu.get(EFER)
    equal(cpu.write(EFER, value & ~LME), INVAL)
    equal(cpu.get(EFER), value)
    holds(cpu.set(EFER, value & ~LME), "the host may not")
    holds(cpu.set(EFER, value), "the host may not, back")


@item("C-230")
def tsc_aux_is_wide_or_not(w):
    """TSC_AUX of over 32 bits: cut short for AMD, refused for Intel; without CPUID it depends."""
    wide = 0x1_0000_0001
    cpu = w.cpu()
    taken = cpu.set(TSC_AUX, wide)
    equal(taken, not w.kernel.tsc_aux_needs_cpuid, "without CPUID")
    amd = w.cpu(cpuid=vendor(w.cpuid, "amd"))
    holds(amd.set(TSC_AUX, wide), "AMD")
    equal(amd.get(TSC_AUX), 1)
    intel = w.cpu(cpuid=vendor(w.cpuid, "intel"))
    holds(not intel.set(TSC_AUX, wide), "Intel")


@item("C-232")
def tsc_adjust_without_cpuid(w):
    """Without its CPUID bit a write to TSC_ADJUST succeeds, and nothing happens."""
    cpu = w.cpu()
    equal(cpu.write(TSC_ADJUST, 0x1000), DONE)
    equal(cpu.read(TSC_ADJUST), Value(0))


@item("C-233")
def deadline_without_lapic(w):
    """Without an in-kernel local APIC a write to TSC_DEADLINE succeeds, and it reads 0."""
    cpu = w.cpu()
    equal(cpu.write(TSC_DEADLINE, 0x1000), DONE)
    equal(cpu.read(TSC_DEADLINE), Value(0))


@item("C-234")
def constants(w):
    """Some MSRs always say the same."""
    cpu = w.cpu()
    wanted = {
        0x198: 0x400000003E8, 0xCD: 3, 0x2C: 0x1000000, 0x11E: 0xBE702111, 0xC001001B: 0x20000000,
    }  # fmt: skip
    for index, value in wanted.items():
        equal(cpu.read(index), Value(value), f"MSR {index:#x}")


@item("C-235")
def energy(w):
    """Energy counters read 0 and take nothing; the power limits are unknown."""
    cpu = w.cpu()
    for index in (0x606, 0x611, 0x619, 0x639, 0x641):
        equal(cpu.read(index), Value(0), f"read of {index:#x}")
        equal(cpu.write(index, 1), UNKNOWN, f"write of {index:#x}")
    for index in (0x610, 0x614):
        equal(cpu.read(index), UNKNOWN, f"read of {index:#x}")


@item("C-236")
def platform_info(w):
    """PLATFORM_INFO is 0x80000000, and not for the guest once the VM says so."""
    cpu = w.cpu()
    equal(cpu.read(PLATFORM_INFO), Value(0x80000000))
    cpu.vm.enable_cap(159, 0)
    equal(cpu.read(PLATFORM_INFO), INVAL)
    equal(cpu.get(PLATFORM_INFO), 0x80000000)


@item("C-237")
def microcode_revision(w):
    """A guest's write to UCODE_REV succeeds and changes nothing; the host's changes it."""
    cpu = w.cpu()
    before = cpu.get(UCODE_REV)
    equal(cpu.write(UCODE_REV, before + 1), DONE)
    equal(cpu.get(UCODE_REV), before)
    holds(cpu.set(UCODE_REV, 0x77), "the host may not")
    equal(cpu.read(UCODE_REV), Value(0x77))


@item("C-239")
def poll_control(w):
    """POLL_CONTROL is 1 at first, and takes 0 and 1."""
    cpu = w.cpu()
    equal(cpu.read(POLL_CONTROL), Value(1))
    equal(cpu.write(POLL_CONTROL, 0), DONE)
    equal(cpu.write(POLL_CONTROL, 2), INVAL)
    equal(cpu.read(POLL_CONTROL), Value(0))


@item("C-240")
def paravirtual_reserved_bits(w):
    """STEAL_TIME, PV_EOI and ASYNC_PF_EN refuse what they do not know."""
    cpu = w.cpu(irqchip=True)
    equal(cpu.write(STEAL_TIME, 2), INVAL)
    equal(cpu.write(PV_EOI, 2 | 1), INVAL)
    equal(cpu.write(ASYNC_PF_EN, 1 << 4), INVAL)
    equal(cpu.write(ASYNC_PF_EN, 1 << 5), INVAL)


@item("C-243")
def migration_control(w):
    """MIGRATION_CONTROL is the VMM's to provide: unknown."""
    cpu = w.cpu()
    equal(cpu.read(MIGRATION), UNKNOWN)
    equal(cpu.write(MIGRATION, 1), UNKNOWN)


@item("C-244")
def x2apic_registers(w):
    """In x2APIC mode some registers can be read, some written, and the rest is INVAL."""
    cpu = w.cpu(irqchip=True, cpuid=w.cpuid)
    equal(cpu.write(APIC_BASE, X2APIC_ENABLED), DONE)
    for index in (0x802, 0x803, 0x808, 0x810, 0x830, 0x832, 0x838):
        holds(isinstance(cpu.read(index), Value), f"read of {index:#x}")
    for index in (0x80B, 0x80E, 0x82F, 0x831, 0x83F, 0x840, 0x8FF):
        equal(cpu.read(index), INVAL, f"read of {index:#x}")
    equal(cpu.write(0x802, 0), INVAL)
    equal(cpu.write(0x808, 1 << 32), INVAL)
    for index in (0x808, 0x80B, 0x83F):
        equal(cpu.write(index, 0), DONE, f"write of {index:#x}")


@item("C-245")
def performance_counters(w):
    """With the PMU off the old counters take anything and read 0."""
    cpu = w.cpu()
    for index in (0xC0010000, 0xC0010004, 0xC1, 0x186):
        equal(cpu.write(index, 0x123), DONE, f"write of {index:#x}")
        equal(cpu.read(index), Value(0), f"read of {index:#x}")


@item("C-246")
def tsc_write(w):
    """WRMSR of the TSC changes TSC_ADJUST by as much as it moves it, where it moves it."""
    cpu = w.cpu(cpuid=w.cpuid)
    before = cpu.get(TSC_ADJUST)
    now = cpu.get(TSC)
    moved = 1 << 45
    equal(cpu.write(TSC, now + moved), DONE)
    change = cpu.get(TSC_ADJUST) - before
    holds(0 < moved - change < 1 << 40, f"TSC_ADJUST changed by {change:#x}")
    holds((cpu.get(TSC) >= now + moved) == w.kernel.moves_tsc, "the TSC itself")
