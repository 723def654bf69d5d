# SPDX-License-Identifier: Apache-2.0
"""
CPU features
------------

What the engine can do, as CPUID says it (APM volume 3, appendix E). Hidden is what it does wrongly
(AVX: results are silently wrong), what needs it (XSAVE), and what it does not do at all.
"""

import functools
import struct
from collections.abc import Mapping
from typing import Final

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX
from kvmsr.backend.soft.profile import Profile
from kvmsr.backend.soft.tables import CpuidEntry

__all__ = ("cr4_reserved", "cr4_unsupported", "supported_cpuid")

_BRAND: Final = b"kvmsr soft CPU"
_MAX_BASIC: Final = 0xD
_MAX_EXTENDED: Final = 0x8000_0008


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


_1_ECX: Final = _bits(0, 1, 9, 13, 19, 20, 21, 22, 23, 24, 25, 30, 31)
"""SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 X2APIC MOVBE POPCNT TSC_DEADLINE AES RDRAND hypervisor"""

_1_EDX: Final = 0x178B_FBFF
"""FPU to FXSR, SSE, SSE2, HTT; without what needs firmware's help"""

_7_EBX: Final = _bits(0, 1, 3, 7, 8, 9, 19, 20)
"""FSGSBASE TSC_ADJUST BMI1 SMEP BMI2 ERMS ADX SMAP"""

_KVM_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"
_KVM_BASE: Final = 0x4000_0000
_KVM_FEATURES: Final = _bits(0, 3, 7, 11, 13, 24)
"""CLOCKSOURCE CLOCKSOURCE2 PV_UNHALT PV_SEND_IPI PV_SCHED_YIELD CLOCKSOURCE_STABLE_BIT: what is
more than accepted (Documentation/virt/kvm/x86/cpuid.rst)"""

_8000_0001_ECX: Final = _bits(0, 4, 5, 6, 8)
"""LAHF CR8 ABM SSE4A PREFETCHW"""

_8000_0001_EDX: Final = 0x0183_F3FF | _bits(11, 20, 22, 25, 26, 27, 29)
"""the basics again, SYSCALL NX MMXEXT FXSR_OPT 1-GiB pages RDTSCP long mode"""

_INVARIANT_TSC: Final = 1 << 8
_ADDRESS_SIZES: Final = 48 << 8 | 40

_CR4_ALWAYS: Final = _bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
_CR4_BY_FEATURE: Final = (
    (16, 7, "ebx", 0), (20, 7, "ebx", 7), (21, 7, "ebx", 20), (11, 7, "ecx", 2),
    (12, 7, "ecx", 16), (22, 7, "ecx", 3), (17, 1, "ecx", 17), (18, 1, "ecx", 26),
)  # fmt: skip
"""Bits of CR4 that are there with a CPUID bit: FSGSBASE SMEP SMAP UMIP LA57 PKE PCIDE OSXSAVE."""


def supported_cpuid(profile: Profile) -> tuple[CpuidEntry, ...]:
    """Return what KVM_GET_SUPPORTED_CPUID gives."""
    ebx, edx, ecx = struct.unpack("<3I", profile.cpuid_vendor.encode("ascii"))
    signature = profile.cpuid_signature
    kvm = struct.unpack("<3I", _KVM_SIGNATURE)
    brand = struct.unpack("<12I", _BRAND.ljust(48, b"\0"))

    def leaf(function: int, *registers: int) -> CpuidEntry:
        eax, ebx, ecx, edx = registers
        return (function, 0, 0, eax, ebx, ecx, edx)

    return (
        leaf(0, _MAX_BASIC, ebx, ecx, edx),
        leaf(1, signature, 0x0001_0800, _1_ECX, _1_EDX),
        (7, 0, CPUID_FLAG_SIGNIFCANT_INDEX, 0, _7_EBX, 0, 0),
        (0xB, 0, CPUID_FLAG_SIGNIFCANT_INDEX, 0, 0, 0, 0),  # the topology is up to user space
        leaf(_KVM_BASE, _KVM_BASE + 1, *kvm),
        leaf(_KVM_BASE + 1, _KVM_FEATURES, 0, 0, 0),
        leaf(0x8000_0000, _MAX_EXTENDED, ebx, ecx, edx),
        leaf(0x8000_0001, signature, 0, _8000_0001_ECX, _8000_0001_EDX),
        leaf(0x8000_0002, *brand[:4]),
        leaf(0x8000_0003, *brand[4:8]),
        leaf(0x8000_0004, *brand[8:]),
        leaf(0x8000_0007, 0, 0, 0, _INVARIANT_TSC),
        leaf(0x8000_0008, _ADDRESS_SIZES, 0, 0, 0),
    )


def cr4_reserved(leaves: Mapping[tuple[int, int | None], tuple[int, ...]]) -> int:
    """Return the bits of CR4 that CPUID *leaves* do not allow."""
    allowed = _CR4_ALWAYS
    for bit, function, register, feature in _CR4_BY_FEATURE:
        leaf = leaves.get((function, 0)) or leaves.get((function, None))
        if leaf is not None and leaf[("eax", "ebx", "ecx", "edx").index(register)] >> feature & 1:
            allowed |= 1 << bit
    return ~allowed & 0xFFFF_FFFF_FFFF_FFFF


@functools.cache
def cr4_unsupported(profile: Profile) -> int:
    """Return the bits of CR4 that no guest may set, whatever its CPUID says."""
    return cr4_reserved(
        {(leaf, None): tuple(regs) for leaf, _, _, *regs in supported_cpuid(profile)}
    )
