# SPDX-License-Identifier: Apache-2.0
"""
Profiles
--------

Which kernel is modelled: where KVMs differ, a field says how this one is. What has no field is the
same everywhere. The facts are those of Linux's ``arch/x86/kvm`` in the version that a profile is
named after (6.1: ``x86.c``, ``svm/svm.c``, ``vmx/vmx.c``; 6.18: also ``msrs.c``), and, for ``pvm``
and ``patch-v3``, of the patches with those names.
"""

import errno
import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from kvmsr.abi import Cap
from kvmsr.errors import UsageError

__all__ = ("PROFILES", "Profile", "find_profile")

_REASONS: Final = 7
_HWCR_18, _HWCR_24 = 1 << 18, 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """
    A kernel.

    :ivar vendor: the vendor module's: ``amd``, ``intel`` or ``pvm``.
    :ivar completion: how a deflected instruction is skipped: ``vmx`` (the RIP at that time, and the
        length that the exit reported), ``svm`` (the next RIP that the exit reported) or
        ``emulator`` (the RIP and RFLAGS that the emulator has put by).
    :ivar unadvertised_unsupported: a feature MSR that the guest's CPUID does not offer is
        UNSUPPORTED to it, not INVALID.
    :ivar exempts_all_listed: the host may read 0 from and write 0 to every listed MSR, also one
        that only KVM emulates, and read 0 from it on the system fd.
    :ivar zeroes_failed_get: the entry at which KVM_GET_MSRS stops becomes 0 whatever the failure.
    :ivar feature_msrs_frozen: feature MSRs do not change after the first KVM_RUN.
    :ivar cpuid_frozen: what KVM_SET_CPUID2 refuses after the first KVM_RUN: ``changes``, ``all``
        (also the same table again), or ``none``.
    :ivar empty_cpuid_counts: before the first KVM_SET_CPUID2, CR4 takes what an empty table allows,
        which is hardly anything (since Linux 6.14; older kernels take all that they support).
    :ivar withheld: CPUID features that KVM does not have and a guest therefore neither, whatever
        its CPUID says; older kernels go by the guest's CPUID alone.
    :ivar granted: the opposite: what a guest has as soon as its CPUID is set.
    :ivar hyperv: the kernel knows Hyper-V's MSRs, so that they are INVALID without its CPUID.
    :ivar hyperv_extended: of Hyper-V's interface it has extended hypercalls and the say over the
        invariant TSC, too (since Linux 6.3).
    :ivar hypercall: the CPU's hypercall instruction, which KVM puts in the place of the other
        vendor's; empty: it does either.
    :ivar smm: the kernel has System Management Mode, so that the host may access SMBASE.
    :ivar hwcr_bits: what HWCR takes.
    :ivar hwcr_exact: HWCR takes these bits together or none, not any subset.
    :ivar checks_pat: a PAT value with an undefined memory type is INVALID.
    :ivar tsc_aux_needs_cpuid: a vCPU without CPUID counts as one that refuses bits 63:32.
    :ivar moves_tsc: a write of the TSC moves it.
    :ivar mtrr_window: what lies between MTRRs is INVALID, not unknown.
    :ivar misc_enable: MISC_ENABLE's value at reset.
    :ivar microcode: UCODE_REV's value at reset.
    :ivar fastpath: MSRs whose writes may be done before the filter is asked.
    :ivar checks_soft_exceptions: kvm_amd drops a #BP or #OF that user space injects, if SVM has not
        reported the next RIP and the instruction at RIP is not one that raises it
        (svm_update_soft_interrupt_rip of svm/svm.c, since late 2025; before, KVM skipped that
        instruction).
    :ivar deflects: ``mask`` (KVM_CAP_X86_USER_SPACE_MSR takes reasons) or ``all`` (it is a
        boolean, every #GP is deflected, without a reason, and there is no filter).
    :ivar checks_cap_arguments: unknown reasons are refused.
    :ivar la57: the host's CPU has linear addresses of 57 bits, and what is canonical goes by that:
        since Linux 6.13, ``is_noncanonical_msr_address`` of arch/x86/kvm/mmu.h.
    :ivar ignore_msrs: kvm.ignore_msrs.
    :ivar report_ignored_msrs: kvm.report_ignored_msrs.
    :ivar force_emulation_prefix: kvm.force_emulation_prefix.
    """

    name: str
    vendor: str = "amd"
    cpuid_vendor: str = "AuthenticAMD"
    cpuid_signature: int = 0x00A2_0F12
    completion: str = "svm"
    unadvertised_unsupported: bool = True
    exempts_all_listed: bool = True
    zeroes_failed_get: bool = True
    feature_msrs_frozen: bool = True
    cpuid_frozen: str = "changes"
    empty_cpuid_counts: bool = True
    withheld: frozenset[str] = frozenset(("pdcm",))
    granted: frozenset[str] = frozenset()
    hyperv: bool = True
    hyperv_extended: bool = True
    hypercall: bytes = b"\x0f\x01\xd9"  # VMMCALL
    smm: bool = True
    hwcr_bits: int = _HWCR_18 | _HWCR_24
    hwcr_exact: bool = False
    checks_pat: bool = True
    tsc_aux_needs_cpuid: bool = True
    moves_tsc: bool = True
    mtrr_window: bool = False
    misc_enable: int = 0x1800
    microcode: int = 0x0100_0065
    fastpath: frozenset[int] = frozenset((0x830, 0x6E0))
    checks_soft_exceptions: bool = False
    deflects: str = "mask"
    checks_cap_arguments: bool = True
    la57: bool = False
    ignore_msrs: bool = False
    report_ignored_msrs: bool = True
    force_emulation_prefix: bool = False

    def has_capability(self, cap: int) -> bool:
        """Return whether this kernel may know of capability *cap* at all."""
        return self.deflects == "mask" or cap != Cap.X86_MSR_FILTER

    def user_space_msr_mask(self, value: int) -> int:
        """
        Return the reasons for which accesses are deflected after ENABLE_CAP with *value*.

        :raises OSError: EINVAL for unknown reasons, where the kernel looks.
        """
        if self.deflects == "all":
            return _REASONS if value else 0
        if self.checks_cap_arguments and value & ~_REASONS:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return value & 0xFFFF_FFFF


_NEWEST: Final = Profile(name="linux-6.18-amd", checks_soft_exceptions=True)
_6_1_AMD: Final = replace(
    _NEWEST,
    name="linux-6.1-amd",
    unadvertised_unsupported=False,
    exempts_all_listed=False,
    zeroes_failed_get=False,
    feature_msrs_frozen=False,
    empty_cpuid_counts=False,
    withheld=frozenset(),
    hyperv_extended=False,
    hwcr_bits=_HWCR_18,
    hwcr_exact=True,
    tsc_aux_needs_cpuid=False,
    mtrr_window=True,
    fastpath=frozenset((0x830,)),
)
_6_1_INTEL: Final = replace(
    _6_1_AMD,
    name="linux-6.1-intel",
    vendor="intel",
    cpuid_vendor="GenuineIntel",
    cpuid_signature=0x0005_0654,
    completion="vmx",
    hypercall=b"\x0f\x01\xc1",  # VMCALL
    checks_soft_exceptions=False,
    microcode=0x1_0000_0000,
    fastpath=frozenset((0x830, 0x6E0)),
)
_PVM: Final = replace(
    _NEWEST,
    name="pvm",
    vendor="pvm",
    completion="emulator",
    hypercall=b"",
    checks_soft_exceptions=False,
    hyperv=False,
    smm=False,
    cpuid_frozen="all",
    withheld=frozenset(("arch_capabilities", "pdcm", "rdtscp", "rdpid")),
    granted=frozenset(("tsc_adjust",)),
    checks_pat=False,
    moves_tsc=False,
    misc_enable=1,
    microcode=0,
    fastpath=frozenset(),
)
_PATCH_V3: Final = replace(
    _6_1_AMD, name="patch-v3", deflects="all", checks_cap_arguments=False, fastpath=frozenset(),
    cpuid_frozen="none", checks_soft_exceptions=False,
)  # fmt: skip

PROFILES: Final = {
    profile.name: profile for profile in (_NEWEST, _6_1_AMD, _6_1_INTEL, _PVM, _PATCH_V3)
}
"""The profiles by name, the default first."""

_SWITCHES: Final = ("ignore_msrs", "report_ignored_msrs", "force_emulation_prefix", "la57")


def find_profile(text: str) -> Profile:
    """
    Return a profile by name, with switches after it: of the kvm module, or of the host's CPU.

    For example ``linux-6.1-amd,ignore_msrs`` or ``pvm,report_ignored_msrs=0``.

    :raises UsageError: if there is no such profile or switch.
    """
    name, *switches = text.split(",")
    if name not in PROFILES:
        raise UsageError(f"no soft profile is called {name!r}{_hint(name, PROFILES)}")
    changes = {}
    for switch in switches:
        key, _, value = switch.partition("=")
        if key not in _SWITCHES:
            raise UsageError(f"soft profile {text!r}: no switch {key!r}{_hint(key, _SWITCHES)}")
        if value not in ("", "0", "1"):
            raise UsageError(f"soft profile {text!r}: {key} is 0 or 1, not {value!r}")
        changes[key] = value != "0"
    return replace(PROFILES[name], **changes)  # type: ignore[arg-type]


def _hint(name: str, known: object) -> str:
    names = list(known)  # type: ignore[call-overload]
    near = get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
