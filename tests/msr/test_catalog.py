"""The catalog: names are unique, and the names that people use are found."""

from collections import Counter

import pytest

from kvmsr.errors import UnknownMsrError
from kvmsr.msr import catalog, handled


def test_names_are_unique():
    """A name belongs to one index, though it may have several meanings there."""
    names = {(name.lower(), msr.index) for msr in catalog() for name in (msr.name, *msr.aliases)}
    counts = Counter(name for name, _ in names)
    assert [name for name, count in counts.items() if count > 1] == []


def test_indices_are_msrs():
    assert all(0 <= msr.index < 1 << 32 for msr in catalog())
    assert len(catalog()) > 800


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("MSR_CORE_THREAD_COUNT", 0x35),
        ("IA32_PAT", 0x277),
        ("efer", 0xC0000080),
        ("MSR_K7_HWCR", 0xC0010015),
        ("HV_X64_MSR_CRASH_P3", 0x40000103),
        ("IA32_MC4_STATUS", 0x411),
        ("IA32_MTRR_PHYSMASK7", 0x20F),
        ("MSR_KVM_STEAL_TIME", 0x4B564D03),
        ("MSR_IA32_UCODE_REV", 0x8B),
        ("MSR_IA32_PERFCTR0", 0xC1),
        ("MSR_IA32_PERFCTR1", 0xC2),
        ("MSR_P6_PERFCTR0", 0xC1),
        ("MSR_P6_PERFCTR1", 0xC2),
        ("MSR_P6_EVNTSEL0", 0x186),
        ("MSR_P6_EVNTSEL1", 0x187),
        ("IA32_PMC7", 0xC8),
        ("IA32_PERFEVTSEL7", 0x18D),
        ("MSR_LBR_NHM_FROM", 0x680),
        ("MSR_LBR_NHM_TO", 0x6C0),
        ("MSR_LASTBRANCH_31_TO_IP", 0x6DF),
        ("MSR_CORE_PERF_GLOBAL_STATUS_SET", 0x391),
        ("MSR_PEBS_LD_LAT_THRESHOLD", 0x3F6),
        ("MSR_PEBS_FRONTEND", 0x3F7),
        ("MSR_IA32_VMX_PROCBASED_CTLS3", 0x492),
        ("IA32_VMX_EXIT_CTLS2", 0x493),
        ("MSR_PKG_C8_RESIDENCY", 0x630),
        ("MSR_PKG_C9_RESIDENCY", 0x631),
        ("MSR_PKG_C10_RESIDENCY", 0x632),
        ("MSR_CORE_C1_RES", 0x660),
        ("MSR_ARCH_LBR_INFO_0", 0x1200),
        ("MSR_ARCH_LBR_CTL", 0x14CE),
        ("MSR_ARCH_LBR_DEPTH", 0x14CF),
        ("MSR_ARCH_LBR_FROM_0", 0x1500),
        ("MSR_ARCH_LBR_TO_0", 0x1600),
        ("IA32_LBR_31_TO_IP", 0x161F),
        ("MSR_AMD64_LBR_SELECT", 0xC000010E),
        ("MSR_AMD_DBG_EXTN_CFG", 0xC000010F),
        ("MSR_AMD_PSTATE_DEF_BASE", 0xC0010064),
        ("MSR_AMD_PSTATE_DEF7", 0xC001006B),
        ("MSR_AMD64_SVM_AVIC_DOORBELL", 0xC001011B),
        ("MSR_F15H_PERF_CTL", 0xC0010200),
        ("MSR_F15H_PERF_CTR", 0xC0010201),
        ("MSR_F15H_PERF_CTR5", 0xC001020B),
        ("MSR_AMD64_IBSFETCHLINAD", 0xC0011031),
        ("MSR_AMD64_IBSFETCHPHYSAD", 0xC0011032),
        ("MSR_AMD64_IBSOPRIP", 0xC0011034),
        ("MSR_AMD64_IBSOPDATA", 0xC0011035),
        ("MSR_AMD64_IBSOPDATA2", 0xC0011036),
        ("MSR_AMD64_IBSOPDATA3", 0xC0011037),
        ("MSR_AMD64_IBSDCLINAD", 0xC0011038),
        ("MSR_AMD64_IBSDCPHYSAD", 0xC0011039),
        ("MSR_AMD64_IBSBRTARGET", 0xC001103B),
        ("MSR_AMD64_ICIBSEXTDCTL", 0xC001103C),
        ("MSR_AMD64_IBSOPDATA4", 0xC001103D),
    ],
)
def test_names_are_found(name, index):
    assert catalog().lookup(name).index == index


def test_an_index_has_its_canonical_name():
    assert catalog().name(0xC0010015) == "MSR_K7_HWCR"
    assert catalog().name(0x12345678) == ""
    assert 0x277 in catalog()
    assert catalog()[0x277].name == "IA32_PAT"


def test_an_unknown_name_comes_with_what_was_meant():
    with pytest.raises(UnknownMsrError, match="did you mean IA32_MISC_ENABLE") as caught:
        catalog().lookup("IA32_MISC_ENABEL")
    assert caught.value.nearest[0] == "IA32_MISC_ENABLE"


def test_an_alias_is_for_the_msrs_that_have_it():
    names = {name for msr in catalog() for name in (msr.name, *msr.aliases)}
    assert not names & {"MSR_P6_PERFCTR2", "MSR_P6_EVNTSEL2", "MSR_IA32_PERFCTR2"}
    assert catalog()[0xC3].name == "IA32_PMC2"
    assert catalog()[0xC2].name == "IA32_PMC1"


@pytest.mark.parametrize("index", [0xE7, 0xE8, 0x3FC, 0x3FD, 0x3FE, 0x660])
def test_what_a_vmm_may_hand_over_counts_as_handled(index):
    (row,) = (row for row in handled() if row.first <= index <= row.last)
    assert row.reads


def test_the_serial_number_is_announced_in_bit_23():
    (field,) = [f for f in catalog().lookup("MSR_PLATFORM_INFO").fields if f.name == "ppin_cap"]
    assert (field.low, field.high) == (23, 23)
