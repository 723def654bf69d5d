# SPDX-License-Identifier: Apache-2.0
"""
The guest's CPUID
-----------------

What KVM_SET_CPUID2 said, as the MSR handlers ask for it (guest_cpuid_has of arch/x86/kvm/cpuid.h),
and as the CPUID instruction does.
"""

import struct
from collections.abc import Sequence
from typing import Final

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX
from kvmsr.backend.soft.features import cr4_reserved, cr4_unsupported
from kvmsr.backend.soft.profile import Profile
from kvmsr.backend.soft.tables import CpuidEntry

__all__ = ("GuestCpuid",)

_REGISTERS: Final = {"eax": 0, "ebx": 1, "ecx": 2, "edx": 3}

_FEATURES: Final = {
    "sse3": (1, "ecx", 0),
    "mwait": (1, "ecx", 3),
    "pdcm": (1, "ecx", 15),
    "x2apic": (1, "ecx", 21),
    "tsc_deadline": (1, "ecx", 24),
    "tsc_adjust": (7, "ebx", 1),
    "sgx": (7, "ebx", 2),
    "rdpid": (7, "ecx", 22),
    "ibrs_ibpb": (7, "edx", 26),
    "stibp": (7, "edx", 27),
    "flush_l1d": (7, "edx", 28),
    "arch_capabilities": (7, "edx", 29),
    "ssbd": (7, "edx", 31),
    "xsave": (1, "ecx", 26),
    "svm": (0x8000_0001, "ecx", 2),
    "osvw": (0x8000_0001, "ecx", 9),
    "nx": (0x8000_0001, "edx", 20),
    "fxsr_opt": (0x8000_0001, "edx", 25),
    "rdtscp": (0x8000_0001, "edx", 27),
    "lm": (0x8000_0001, "edx", 29),
    "amd_ibpb": (0x8000_0008, "ebx", 12),
    "amd_ibrs": (0x8000_0008, "ebx", 14),
    "amd_stibp": (0x8000_0008, "ebx", 15),
    "amd_ssbd": (0x8000_0008, "ebx", 24),
    "virt_ssbd": (0x8000_0008, "ebx", 25),
    "xsaves": (0xD, "eax", 3),
    "xfd": (0xD, "eax", 4),
}
"""Leaf, register and bit (SDM volume 2, CPUID; APM volume 3, appendix E)."""

_SUBLEAF: Final = {0xD: 1}
_SPEC_CTRL: Final = ("ibrs_ibpb", "stibp", "ssbd", "amd_ibrs", "amd_stibp", "amd_ssbd")
_PRED_CMD: Final = ("ibrs_ibpb", "amd_ibpb")
_KVM_BASE: Final = 0x4000_0000
_KVM_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"
_AMD: Final = (b"AuthenticAMD", b"HygonGenuine", b"AMDisbetter!")
_INTEL: Final = b"GenuineIntel"
_ADDRESS_SIZES: Final = 0x8000_0008
_DEFAULT_MAXPHYADDR: Final = 36


class GuestCpuid:
    """
    CPUID leaves.

    :param entries: as KVM_SET_CPUID2 gave them; None: it is yet to come.
    :param profile: says which features a guest never has, and always, whatever the leaves say.
    :ivar entries: them, as user space gave them.
    :ivar is_set: whether there are any.
    :ivar is_amd: the vendor is AMD or Hygon.
    :ivar is_intel: the vendor is Intel.
    :ivar maxphyaddr: the bits of a physical address.
    :ivar pv_features: EAX of KVM's own feature leaf; 0 without one.
    :ivar cr4_reserved: the bits of CR4 that the guest must leave 0.
    """

    def __init__(
        self, entries: Sequence[CpuidEntry] | None, profile: Profile | None = None
    ) -> None:
        self.entries = tuple(entries or ())
        self._profile = profile
        self._withheld = profile.withheld if profile else frozenset()
        self._granted = profile.granted if profile else frozenset()
        self._leaves: dict[tuple[int, int | None], tuple[int, ...]] = {}
        for function, index, flags, *registers in self.entries:
            place = (function, index if flags & CPUID_FLAG_SIGNIFCANT_INDEX else None)
            self._leaves.setdefault(place, tuple(registers))  # of several, the first counts
        self.is_set = bool(self._leaves)
        vendor = self._text(0, ("ebx", "edx", "ecx"))
        self.is_amd = vendor in _AMD
        self.is_intel = vendor == _INTEL
        self.maxphyaddr = self._find_maxphyaddr()
        self.pv_features = self._find_pv_features()
        self.cr4_reserved = cr4_unsupported(profile) if profile else 0
        if entries is not None or profile is None or profile.empty_cpuid_counts:
            self.cr4_reserved |= cr4_reserved(self._leaves)
        self._has: dict[str, bool] = {}

    def with_mwait(self, there: bool) -> "GuestCpuid":
        """Return these leaves with MONITOR and MWAIT in CPUID, or not."""
        function, register, bit = _FEATURES["mwait"]
        at = 3 + _REGISTERS[register]
        entries = [list(entry) for entry in self.entries]
        for entry in entries:
            if entry[0] == function:
                entry[at] = entry[at] & ~(1 << bit) | there << bit
        return GuestCpuid([tuple(entry) for entry in entries], self._profile)  # type: ignore[misc]

    def leaf(self, function: int, index: int) -> tuple[int, ...]:
        """Return EAX, EBX, ECX and EDX of a leaf; zeros where there is no such leaf."""
        leaves = self._leaves
        return leaves.get((function, index)) or leaves.get((function, None)) or (0, 0, 0, 0)

    def register(self, function: int, register: str, index: int = 0) -> int:
        """Return a register of a leaf; 0 where there is no such leaf."""
        return self.leaf(function, index)[_REGISTERS[register]]

    def has(self, feature: str) -> bool:
        """Return whether the guest has a feature, or, for groups, one of it."""
        known = self._has.get(feature)
        if known is None:
            known = self._has[feature] = self._look(feature)
        return known

    def _look(self, feature: str) -> bool:
        if feature == "spec_ctrl":
            return any(map(self.has, _SPEC_CTRL))
        if feature == "pred_cmd":
            return any(map(self.has, _PRED_CMD))
        if feature in self._withheld or (self.is_set and feature in self._granted):
            return feature not in self._withheld
        function, register, bit = _FEATURES[feature]
        return bool(self.register(function, register, _SUBLEAF.get(function, 0)) >> bit & 1)

    def _text(self, function: int, registers: tuple[str, ...]) -> bytes:
        return struct.pack("<3I", *(self.register(function, name) for name in registers))

    def _find_maxphyaddr(self) -> int:
        has_leaf = self.register(0x8000_0000, "eax") >= _ADDRESS_SIZES
        width = self.register(_ADDRESS_SIZES, "eax") & 0xFF if has_leaf else 0
        return width or _DEFAULT_MAXPHYADDR

    def _find_pv_features(self) -> int:
        for base in range(_KVM_BASE, _KVM_BASE + 0x1_0000, 0x100):
            if self._text(base, ("ebx", "ecx", "edx")) == _KVM_SIGNATURE:
                return self.register(base + 1, "eax")
        return 0
