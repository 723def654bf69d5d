# SPDX-License-Identifier: Apache-2.0
"""
Hyper-V's CPUID leaves
----------------------

What KVM_GET_SUPPORTED_HV_CPUID gives (kvm_get_hv_cpuid of arch/x86/kvm/hyperv.c), and the feature
bits that a guest's leaves have (TLFS 2.4).
"""

import struct
from pathlib import Path
from typing import Final, NamedTuple

from kvmsr.backend.soft.capabilities import MAX_VCPUS
from kvmsr.backend.soft.msr.cpuid import GuestCpuid
from kvmsr.backend.soft.profile import Profile
from kvmsr.backend.soft.tables import CpuidEntry

__all__ = ("Bit", "Features", "features_of", "supported_hv_cpuid")

_INTERFACE, _FEATURES, _ENLIGHTENMENTS = 0x4000_0001, 0x4000_0003, 0x4000_0004
_DEBUGGER_FEATURES: Final = 0x4000_0082
_SIGNATURE: Final = 0x3123_7648  # "Hv#1"
_DEBUGGER_SIGNATURE: Final = 0x3123_5356  # "VS#1"
_NAME: Final = struct.unpack("<3I", b"Linux KVM Hv")
_VERSION: Final = (0x3839, 0xA_0000)  # Hyper-V 2016
_LOGICAL_PROCESSORS, _SPINS = 64, 0xFFF  # as Hyper-V 2016 has them

_NESTED_MSR_BITMAP, _NESTED_PERF_GLOBAL_CTRL = 1 << 19, 1
_SMT: Final = Path("/sys/devices/system/cpu/smt/control")


class Bit:
    """Feature bits, by the register of :class:`Features` that they are in."""

    # eax
    RUNTIME: Final = 1 << 0
    REF_COUNT: Final = 1 << 1
    SYNIC: Final = 1 << 2
    STIMERS: Final = 1 << 3
    APIC: Final = 1 << 4
    HYPERCALL: Final = 1 << 5
    VP_INDEX: Final = 1 << 6
    RESET: Final = 1 << 7
    REFERENCE_TSC: Final = 1 << 9
    FREQUENCIES: Final = 1 << 11
    REENLIGHTENMENT: Final = 1 << 13
    TSC_INVARIANT: Final = 1 << 15
    # ebx
    POST_MESSAGES: Final = 1 << 4
    SIGNAL_EVENTS: Final = 1 << 5
    DEBUGGING: Final = 1 << 11
    EXTENDED: Final = 1 << 20
    # edx
    GUEST_DEBUGGING: Final = 1 << 1
    XMM_INPUT: Final = 1 << 4
    FREQUENCY_MSRS: Final = 1 << 8
    CRASH: Final = 1 << 10
    DEBUG_MSRS: Final = 1 << 11
    DIRECT_STIMERS: Final = 1 << 19
    # recommended
    FLUSH: Final = 1 << 2
    APIC_ACCESS: Final = 1 << 3
    RELAXED_TIMING: Final = 1 << 5
    NO_AUTO_EOI: Final = 1 << 9
    CLUSTER_IPI: Final = 1 << 10
    PROCESSOR_MASKS: Final = 1 << 11
    NO_SMT: Final = 1 << 18
    # debugger
    KERNEL_DEBUGGING: Final = 1 << 1


class Features(NamedTuple):
    """
    The feature bits of a guest.

    :ivar enabled: CPUID says Hyper-V at all.
    :ivar eax: of leaf 0x40000003, as *ebx* and *edx* are.
    :ivar recommended: EAX of leaf 0x40000004; *spins*: EBX.
    :ivar debugger: EAX of leaf 0x40000082.
    """

    enabled: bool
    eax: int = 0
    ebx: int = 0
    edx: int = 0
    recommended: int = 0
    spins: int = 0
    debugger: int = 0


def features_of(cpuid: GuestCpuid) -> Features:
    """Return what a guest's CPUID says; nothing, unless it says Hyper-V."""
    if cpuid.register(_INTERFACE, "eax") != _SIGNATURE:
        return Features(False)
    eax, ebx, _, edx = cpuid.leaf(_FEATURES, 0)
    recommended, spins, _, _ = cpuid.leaf(_ENLIGHTENMENTS, 0)
    return Features(
        True, eax, ebx, edx, recommended, spins, cpuid.register(_DEBUGGER_FEATURES, "eax")
    )


def supported_hv_cpuid(profile: Profile, *, lapic: bool) -> tuple[CpuidEntry, ...]:
    """
    Return what KVM_GET_SUPPORTED_HV_CPUID gives.

    :param lapic: the local APIC is in the kernel, or nothing is known about it.
    """
    f = Bit
    eax = (
        f.RUNTIME | f.REF_COUNT | f.SYNIC | f.STIMERS | f.APIC | f.HYPERCALL | f.VP_INDEX | f.RESET
        | f.REFERENCE_TSC | f.FREQUENCIES | f.REENLIGHTENMENT
    )  # fmt: skip
    ebx = f.POST_MESSAGES | f.SIGNAL_EVENTS | f.DEBUGGING
    edx = f.XMM_INPUT | f.FREQUENCY_MSRS | f.CRASH | f.GUEST_DEBUGGING | f.DEBUG_MSRS
    recommended = (
        f.FLUSH | f.APIC_ACCESS | f.RELAXED_TIMING | f.PROCESSOR_MASKS | f.NO_AUTO_EOI
    )  # fmt: skip
    if profile.hyperv_extended:
        eax, ebx = eax | f.TSC_INVARIANT, ebx | f.EXTENDED
    if lapic:
        edx, recommended = edx | f.DIRECT_STIMERS, recommended | f.CLUSTER_IPI
    if not _smt_is_possible():
        recommended |= f.NO_SMT

    def leaf(function: int, *registers: int) -> CpuidEntry:
        eax, ebx, ecx, edx = (*registers, 0, 0, 0, 0)[:4]
        return (function, 0, 0, eax, ebx, ecx, edx)

    return (
        leaf(0x4000_0000, _DEBUGGER_FEATURES, *_NAME),
        leaf(_INTERFACE, _SIGNATURE),
        leaf(0x4000_0002, *_VERSION),
        leaf(_FEATURES, eax, ebx, 0, edx),
        leaf(_ENLIGHTENMENTS, recommended, _SPINS),
        leaf(0x4000_0005, MAX_VCPUS, _LOGICAL_PROCESSORS),
        leaf(0x4000_0080, 0, *_NAME),
        leaf(0x4000_0081, _DEBUGGER_SIGNATURE),
        leaf(_DEBUGGER_FEATURES, f.KERNEL_DEBUGGING),
        leaf(0x4000_000A, _NESTED_MSR_BITMAP, _NESTED_PERF_GLOBAL_CTRL),
    )


def _smt_is_possible() -> bool:
    """cpu_smt_possible of the kernel, of this one."""
    try:
        return _SMT.read_text().strip() not in ("forceoff", "notsupported")
    except OSError:
        return True
