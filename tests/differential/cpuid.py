# SPDX-License-Identifier: Apache-2.0
"""
CPUID of scenarios
------------------

A small table that every KVM takes, with the features by which KVM decides about MSRs.
"""

import struct
from typing import Any, Final

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX, cpu
from kvmsr.kvm import CpuidTable

__all__ = ("FEATURES", "has", "table")

FEATURES: Final = {
    "x2apic": (1, "ecx", 21), "tsc_deadline": (1, "ecx", 24), "mwait": (1, "ecx", 3),
    "pdcm": (1, "ecx", 15), "tsc_adjust": (7, "ebx", 1), "rdpid": (7, "ecx", 22),
    "spec_ctrl": (7, "edx", 26), "flush_l1d": (7, "edx", 28), "arch_capabilities": (7, "edx", 29),
    "osvw": (0x8000_0001, "ecx", 9), "nx": (0x8000_0001, "edx", 20),
    "fxsr_opt": (0x8000_0001, "edx", 25), "rdtscp": (0x8000_0001, "edx", 27),
    "lm": (0x8000_0001, "edx", 29), "amd_ibpb": (0x8000_0008, "ebx", 12),
    "virt_ssbd": (0x8000_0008, "ebx", 25), "pv_clock": (0x4000_0001, "eax", 0),
    "pv_clock2": (0x4000_0001, "eax", 3), "pv_eoi": (0x4000_0001, "eax", 6),
    "pv_steal": (0x4000_0001, "eax", 5), "pv_poll": (0x4000_0001, "eax", 12),
    "pv_async_pf": (0x4000_0001, "eax", 4), "pv_async_pf_int": (0x4000_0001, "eax", 14),
}  # fmt: skip
"""By name: leaf, register and bit (SDM volume 2; APM volume 3; virt/kvm/x86/cpuid.rst)."""

_VENDORS: Final = {"amd": b"AuthenticAMD", "intel": b"GenuineIntel"}
_BASE: Final = {
    (1, "eax"): 0x00A2_0F12, (1, "edx"): 0x078B_FBFF, (1, "ecx"): 1 << 31,
    (7, "eax"): 0, (0x8000_0001, "eax"): 0x00A2_0F12, (0x8000_0008, "eax"): 48 << 8 | 40,
    (0x4000_0001, "eax"): 0,
}  # fmt: skip


def has(table: CpuidTable, feature: str) -> bool:
    """Return whether a table has a feature of :data:`FEATURES`."""
    function, register, bit = FEATURES[feature]
    leaf = table.find(function)
    return leaf is not None and bool(getattr(leaf, register) >> bit & 1)


def table(vendor: str, features: tuple[str, ...]) -> Any:
    """Return the kvm_cpuid2 with *features* by name."""
    leaves: dict[int, dict[str, int]] = {}
    ebx, edx, ecx = struct.unpack("<3I", _VENDORS[vendor])
    for function, highest in ((0, 7), (0x8000_0000, 0x8000_0008)):
        leaves[function] = {"eax": highest, "ebx": ebx, "ecx": ecx, "edx": edx}
    ebx, ecx, edx = struct.unpack("<3I", b"KVMKVMKVM\0\0\0")
    leaves[0x4000_0000] = {"eax": 0x4000_0001, "ebx": ebx, "ecx": ecx, "edx": edx}
    for (function, register), value in _BASE.items():
        leaves.setdefault(function, {})[register] = value
    for name in features:
        function, register, bit = FEATURES[name]
        leaf = leaves.setdefault(function, {})
        leaf[register] = leaf.get(register, 0) | 1 << bit
    made = cpu.cpuid2(len(leaves))
    made.nent = len(leaves)
    for entry, (function, registers) in zip(made.entries, sorted(leaves.items()), strict=True):
        entry.function = function
        entry.flags = CPUID_FLAG_SIGNIFCANT_INDEX if function == 7 else 0
        for register, value in registers.items():
            setattr(entry, register, value)
    return made
