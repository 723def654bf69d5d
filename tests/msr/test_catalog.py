"""The catalog: unique names, and the names people use."""

from collections import Counter

import pytest

from kvmsr.errors import UnknownMsrError
from kvmsr.msr import catalog


def test_names_are_unique():
    names = Counter(name.lower() for msr in catalog() for name in {msr.name, *msr.aliases})
    assert [name for name, count in names.items() if count > 1] == []


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
