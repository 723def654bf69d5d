# SPDX-License-Identifier: Apache-2.0
"""What the guest's CPUID says to the MSR handlers."""

import pytest

from kvmsr.backend.soft.msr.cpuid import GuestCpuid

SIGNIFICANT = 1


def leaf(function, *, index=0, flags=0, eax=0, ebx=0, ecx=0, edx=0):
    return (function, index, flags, eax, ebx, ecx, edx)


def vendor(name, function=0, *, order=("ebx", "edx", "ecx")):
    """Return a leaf that spells a name."""
    parts = {
        part: int.from_bytes(name[4 * n : 4 * n + 4], "little") for n, part in enumerate(order)
    }
    return leaf(function, **parts)


def hypervisor(name, function):
    return vendor(name, function, order=("ebx", "ecx", "edx"))


def test_without_leaves_there_is_nothing():
    none = GuestCpuid(())
    assert not (none.is_set or none.is_amd or none.is_intel or none.has("rdtscp"))
    assert (none.maxphyaddr, none.pv_features, none.register(1, "ecx")) == (36, 0, 0)


@pytest.mark.parametrize(
    ("name", "is_amd", "is_intel"),
    (
        (b"AuthenticAMD", True, False),
        (b"HygonGenuine", True, False),
        (b"GenuineIntel", False, True),
        (b"CentaurHauls", False, False),
    ),
)
def test_vendors(name, is_amd, is_intel):
    found = GuestCpuid((vendor(name),))
    assert (found.is_set, found.is_amd, found.is_intel) == (True, is_amd, is_intel)


@pytest.mark.parametrize(
    ("feature", "entry"),
    (
        ("rdtscp", leaf(0x8000_0001, edx=1 << 27)),
        ("rdpid", leaf(7, flags=SIGNIFICANT, ecx=1 << 22)),
        ("tsc_adjust", leaf(7, flags=SIGNIFICANT, ebx=1 << 1)),
        ("x2apic", leaf(1, ecx=1 << 21)),
        ("arch_capabilities", leaf(7, flags=SIGNIFICANT, edx=1 << 29)),
        ("pdcm", leaf(1, ecx=1 << 15)),
        ("xsaves", leaf(0xD, index=1, flags=SIGNIFICANT, eax=1 << 3)),
        ("spec_ctrl", leaf(7, flags=SIGNIFICANT, edx=1 << 26)),
        ("spec_ctrl", leaf(0x8000_0008, ebx=1 << 24)),
        ("pred_cmd", leaf(0x8000_0008, ebx=1 << 12)),
        ("osvw", leaf(0x8000_0001, ecx=1 << 9)),
        ("lm", leaf(0x8000_0001, edx=1 << 29)),
    ),
)
def test_features(feature, entry):
    assert GuestCpuid((entry,)).has(feature)
    empty = (*entry[:3], 0, 0, 0, 0)
    assert not GuestCpuid((empty,)).has(feature)


def test_an_index_counts_where_it_is_significant():
    first = leaf(0xD, index=1, flags=SIGNIFICANT, eax=1)
    second = leaf(0xD, index=2, flags=SIGNIFICANT, eax=2)
    anything = leaf(1, index=9, ecx=3)
    found = GuestCpuid((second, first, anything))
    assert [found.register(0xD, "eax", index) for index in range(4)] == [0, 1, 2, 0]
    assert [found.register(1, "ecx", index) for index in (0, 5)] == [3, 3]


def test_of_two_equal_leaves_the_first_counts():
    assert GuestCpuid((leaf(1, ecx=1), leaf(1, ecx=2))).register(1, "ecx") == 1


@pytest.mark.parametrize(
    ("top", "expected"), ((0x8000_0008, 40), (0x8000_001F, 40), (0x8000_0007, 36))
)
def test_maxphyaddr_counts_if_the_leaf_is_in_range(top, expected):
    entries = (leaf(0x8000_0000, eax=top), leaf(0x8000_0008, eax=0x3028))
    assert GuestCpuid(entries).maxphyaddr == expected


@pytest.mark.parametrize("base", (0x4000_0000, 0x4000_0100))
def test_kvm_s_leaves_are_found_behind_another_hypervisor_s(base):
    other = hypervisor(b"Microsoft Hv", 0x4000_0000)
    own = hypervisor(b"KVMKVMKVM\0\0\0", base)
    entries = (own,) if base == 0x4000_0000 else (other, own)
    features = (leaf(0x4000_0001, eax=0xBAD), leaf(base + 1, eax=0x49))[base == 0x4000_0000 :]
    assert GuestCpuid((*entries, *features)).pv_features == 0x49
    assert GuestCpuid((other, *features)).pv_features == 0
