"""MSRs that people have asked about in public: their names and meanings, and what KVM does."""

import pytest

from kvmsr.cli._kvm import about_kvm
from kvmsr.msr import catalog

UNKNOWN, KNOWN, READS = "No KVM handles it", "", "No KVM up to Linux 7.1 handles writes"


@pytest.mark.parametrize(
    ("index", "name", "word", "kvm"),
    [
        (0x17, "IA32_PLATFORM_ID", "microcode", READS),
        (0x1B, "IA32_APIC_BASE", "APIC", KNOWN),
        (0x34, "MSR_SMI_COUNT", "Management Interrupts", KNOWN),
        (0x35, "MSR_CORE_THREAD_COUNT", "cores and threads", UNKNOWN),
        (0x3A, "IA32_FEATURE_CONTROL", "firmware", KNOWN),
        (0x4F, "IA32_PPIN", "identifies the machine", UNKNOWN),
        (0x8B, "IA32_BIOS_SIGN_ID", "revision", KNOWN),
        (0xCE, "MSR_PLATFORM_INFO", "Ratios", KNOWN),
        (0xE2, "MSR_PKG_CST_CONFIG_CONTROL", "sleep", UNKNOWN),
        (0xE7, "IA32_MPERF", "base frequency", READS),
        (0xE8, "IA32_APERF", "real frequency", READS),
        (0x10A, "IA32_ARCH_CAPABILITIES", "speculation", KNOWN),
        (0x198, "IA32_PERF_STATUS", "How fast", READS),
        (0x1A0, "IA32_MISC_ENABLE", "Switches", KNOWN),
        (0x1A2, "MSR_TEMPERATURE_TARGET", "temperature", UNKNOWN),
        (0x1B0, "IA32_ENERGY_PERF_BIAS", "energy", UNKNOWN),
        (0x1C9, "MSR_LASTBRANCH_TOS", "newest", KNOWN),
        (0x606, "MSR_RAPL_POWER_UNIT", "units", READS),
        (0x611, "MSR_PKG_ENERGY_STATUS", "Energy", READS),
        (0x620, "MSR_UNCORE_RATIO_LIMIT", "interconnect", UNKNOWN),
        (0x6E0, "IA32_TSC_DEADLINE", "timer", KNOWN),
        (0x40000100, "HV_X64_MSR_CRASH_P0", "stop code", KNOWN),
        (0x4B564D02, "MSR_KVM_ASYNC_PF_EN", "Page faults", KNOWN),
        (0xC0010015, "MSR_K7_HWCR", "configuration", KNOWN),
        (0xC0010117, "MSR_VM_HSAVE_PA", "VMRUN", KNOWN),
        (0xC0010299, "MSR_AMD_RAPL_POWER_UNIT", "units", UNKNOWN),
    ],
)
def test_what_it_is_and_what_kvm_does(index, name, word, kvm):
    msr = catalog()[index]
    assert msr.name == name
    assert word in msr.about
    said = " ".join(about_kvm(index, msr))
    assert kvm in said
    assert ("No KVM" in said) == bool(kvm)
