# SPDX-License-Identifier: Apache-2.0
"""
Kernels
-------

In what the kernels differ that the suite runs on, so that an item can ask what to expect. Each
field is one difference; everything else is the same everywhere.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from tests.conformance.code import FORCED_EMULATION
from tests.conformance.outcome import INVAL, UNKNOWN, Given

__all__ = ("Kernel", "host", "mainline", "named")

_SYS_MODULE = Path("/sys/module")

_SVM_PASSED_THROUGH: Final = frozenset(
    (0xC0000081, 0x174, 0xC0000101, 0xC0000100, 0xC0000102, 0xC0000082, 0xC0000083, 0xC0000084)
)
_VMX_PASSED_THROUGH: Final = frozenset((0x174, 0x175, 0x176, 0xC0000100, 0xC0000101, 0xC0000102))


@dataclass(frozen=True)
class Kernel:
    """
    What to expect of a KVM.

    :ivar vendor: whose MSRs its vendor module handles: ``amd`` or ``intel``.
    :ivar completion: how the instruction of a deflected access is skipped: ``vmx`` (the current
        RIP and the length that the exit told), ``svm`` (the next RIP that the exit told),
        ``svm-decode`` (decoded anew at the current RIP, for CPUs without next-RIP), or
        ``emulator`` (the RIP and RFLAGS that the emulator has put by).
    :ivar prefix: what stands before RDMSR and WRMSR so that KVM emulates them.
    :ivar passed_through: MSRs that the guest accesses without KVM seeing it, unless a filter
        denies them; a #GP there is the CPU's own.
    :ivar checks_cap_arguments: KVM_ENABLE_CAP refuses mask bits it does not know.
    :ivar checks_pat: a PAT value with an undefined memory type is refused.
    :ivar unadvertised: what comes of a feature MSR that the guest's CPUID does not have.
    :ivar hyperv: what comes of a Hyper-V MSR that the guest's CPUID does not have.
    :ivar freezes_features: feature MSRs do not change after the first KVM_RUN.
    :ivar system_get_of_listed: KVM_GET_MSRS on the system fd reads 0 from an MSR that is in the
        index list and is no feature MSR.
    :ivar tsc_aux_needs_cpuid: without CPUID, a vCPU counts as one that refuses bits 63:32.
    :ivar moves_tsc: a write of the TSC moves it.
    :ivar filters_deadline: a denied write of TSC_DEADLINE is always seen, never taken by the
        WRMSR fast path.
    :ivar unrestorable: listed MSRs that do not take back what they gave, without an irqchip.
    :ivar lacks: parts of the interface that are not there at all, and why.
    """

    name: str
    vendor: str = "amd"
    completion: str = "svm"
    prefix: bytes = b""
    passed_through: frozenset[int] = frozenset()
    checks_cap_arguments: bool = True
    checks_pat: bool = True
    unadvertised: Given = UNKNOWN
    hyperv: Given = INVAL
    freezes_features: bool = True
    system_get_of_listed: bool = True
    tsc_aux_needs_cpuid: bool = True
    moves_tsc: bool = True
    filters_deadline: bool = True
    unrestorable: frozenset[int] = frozenset((0x4B564D06,))
    lacks: Mapping[str, str] = field(default_factory=dict)

    def emulating(self) -> "Kernel":
        """Return this kernel with RDMSR and WRMSR forced through KVM's emulator."""
        return replace(
            self,
            name=f"{self.name}-emulator",
            completion="emulator",
            prefix=FORCED_EMULATION,
            passed_through=frozenset(),
        )


def mainline(version: tuple[int, int], vendor: str, *, next_rip: bool = True) -> Kernel:
    """Return what mainline's kvm_amd or kvm_intel of a Linux version does."""
    old = version < (6, 4)
    svm = vendor == "amd"
    return Kernel(
        name=f"linux-{version[0]}.{version[1]}-{vendor}",
        vendor=vendor,
        completion=("svm" if next_rip else "svm-decode") if svm else "vmx",
        passed_through=_SVM_PASSED_THROUGH if svm else _VMX_PASSED_THROUGH,
        checks_cap_arguments=version >= (6, 1),
        unadvertised=INVAL if version < (6, 12) else UNKNOWN,
        freezes_features=not old,
        system_get_of_listed=version >= (6, 12),
        tsc_aux_needs_cpuid=version >= (6, 12),
        filters_deadline=svm if version < (6, 16) else False,
    )


_PVM: Final = Kernel(
    name="pvm",
    completion="emulator",
    checks_pat=False,
    hyperv=UNKNOWN,
    moves_tsc=False,
    lacks={"rdtscp": "kvm_pvm cannot emulate RDTSCP"},
)

_PATCH_V3: Final = replace(
    mainline((6, 1), "amd"),
    name="patch-v3",
    checks_cap_arguments=False,
    lacks={
        "filter": "the reviewed patch has no filter",
        "reason": "the reviewed patch tells no reason",
        "mask": "the reviewed patch has a switch and no mask",
    },
)

_NAMED: Final = {
    kernel.name: kernel
    for kernel in (
        _PVM,
        _PATCH_V3,
        mainline((6, 1), "amd"),
        mainline((6, 1), "intel"),
        mainline((6, 18), "amd"),
    )
}


def named(name: str) -> Kernel:
    """Return the kernel that a profile of the soft backend models."""
    return _NAMED[name]


def host() -> Kernel:
    """Return what to expect of the KVM that this machine runs."""
    kernel = _host_kernel()
    if _cpu_ignores_lock():
        reason = "this CPU (QEMU's emulation) takes LOCK RDMSR for RDMSR, so KVM never sees #UD"
        return replace(kernel, lacks={**kernel.lacks, "lock": reason})
    return kernel


def _host_kernel() -> Kernel:
    if (_SYS_MODULE / "kvm_pvm").exists():
        return _PVM
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    version = int(major), int(minor)
    if (_SYS_MODULE / "kvm_intel").exists():
        return mainline(version, "intel")
    next_rip = _SYS_MODULE / "kvm_amd/parameters/nrips"
    return mainline(version, "amd", next_rip=next_rip.read_text().strip() in ("Y", "1"))


_LOCK_RDMSR: Final = r"""
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\xf0\x0f\x32")
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""


@cache
def _cpu_ignores_lock() -> bool:
    """Return whether LOCK RDMSR at CPL 3 is #GP here, as RDMSR is, and not #UD."""
    done = subprocess.run([sys.executable, "-c", _LOCK_RDMSR], capture_output=True, check=False)
    return done.returncode == -signal.SIGSEGV
