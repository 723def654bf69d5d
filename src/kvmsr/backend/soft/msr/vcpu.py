# SPDX-License-Identifier: Apache-2.0
"""
What the MSR path asks of a vCPU
--------------------------------

Protocols, so that the path can be tested with a CPU that merely says "RDMSR of X at CPL n".
"""

from collections.abc import Callable, MutableSequence
from typing import Any, Protocol

from kvmsr.abi import Quirk
from kvmsr.backend.soft.hyperv.partition import Partition
from kvmsr.backend.soft.hyperv.vcpu import HypervVcpu
from kvmsr.backend.soft.msr.cpuid import GuestCpuid
from kvmsr.backend.soft.msr.filter import MsrFilter
from kvmsr.backend.soft.msr.state import MsrState
from kvmsr.backend.soft.profile import Profile

__all__ = ("RAX", "RCX", "RDX", "RIP", "LapicMsrs", "MsrClock", "MsrCpu", "MsrVcpu", "MsrVm")

RAX, RCX, RDX, RIP = 0, 1, 2, 16
"""Places in :attr:`MsrCpu.regs`."""


class MsrVm(Protocol):
    """A VM, as the MSR path sees it."""

    profile: Profile
    user_space_msr_mask: int
    msr_filter: MsrFilter | None
    guest_can_read_platform_info: bool
    hyperv: Partition

    def has_quirk(self, quirk: Quirk) -> bool:
        """Return whether a quirk is not disabled (KVM_CAP_DISABLE_QUIRKS2)."""

    @property
    def irqchip_in_kernel(self) -> bool:
        """Whether KVM_CREATE_IRQCHIP was done."""

    def has_memory(self, gpa: int) -> bool:
        """Return whether there is memory at a guest-physical address."""

    def read_guest(self, gpa: int, size: int) -> bytes | None:
        """Read guest-physical memory within a page; None where there is none."""

    def write_guest(self, gpa: int, data: bytes) -> bool:
        """Write to guest-physical memory; return whether it is there."""


class MsrCpu(Protocol):
    """A CPU: its registers, and the MSRs that it holds itself."""

    @property
    def regs(self) -> MutableSequence[int]:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, RIP."""

    rflags: int

    @property
    def cpl(self) -> int:
        """The privilege level, 0 to 3."""

    @property
    def paging(self) -> bool:
        """CR0.PG."""

    @property
    def long_code(self) -> bool:
        """Whether 64-bit code runs (EFER.LMA and CS.L): else RIP has 32 bits."""

    def flush_code(self) -> None:
        """Take note that somebody else may have rewritten code."""

    def read_msr(self, index: int) -> int:
        """Read one of EFER, STAR … TSC_AUX, SYSENTER_*, PAT, FS/GS/KERNEL_GS_BASE."""

    def write_msr(self, index: int, value: int) -> None:
        """Write one of these, unchecked; EFER.LMA stays as it is."""


class MsrClock(Protocol):
    """A vCPU's time."""

    @property
    def tsc_khz(self) -> int:
        """How fast the guest's TSC counts."""

    def tsc(self) -> int:
        """Return the guest's TSC."""

    def adjust_tsc(self, delta: int) -> None:
        """Move the guest's TSC."""

    def kvmclock(self) -> tuple[int, int]:
        """Return the VM's kvmclock, in nanoseconds, and the guest's TSC at that moment."""


class LapicMsrs(Protocol):
    """The in-kernel local APIC's MSRs."""

    apic_base: int
    tsc_deadline: int

    @property
    def is_x2apic(self) -> bool:
        """Whether it is in x2APIC mode."""

    def mmio_read(self, offset: int, size: int) -> int:
        """Read from its page."""

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write to its page."""

    def x2apic_read(self, index: int) -> int | None:
        """Read MSR 0x800 to 0x8ff; None where that is illegal or it is not in x2APIC mode."""

    def x2apic_write(self, index: int, value: int) -> bool:
        """Write one; False where that is illegal."""


class MsrVcpu(Protocol):
    """
    A vCPU, as the MSR path sees it.

    :ivar cpuid: what CPUID shows the guest.
    :ivar complete_emulation: what is left to do of a deflected instruction when user space comes
        back; it is called once, and says whether the guest goes on.
    :ivar deferred: of that instruction, its length, the RIP behind it and RFLAGS; None: what is so
        when it is completed.
    """

    id: int
    run: Any
    msrs: MsrState
    cpuid: GuestCpuid
    apic_base: int
    has_run: bool
    enforce_pv_cpuid: bool
    complete_emulation: Callable[[Any], bool] | None
    deferred: tuple[int, int | None, int | None]

    @property
    def vm(self) -> MsrVm:
        """Its VM."""

    @property
    def cpu(self) -> MsrCpu:
        """Its CPU."""

    @property
    def clock(self) -> MsrClock:
        """Its time."""

    @property
    def hyperv(self) -> HypervVcpu:
        """What of Hyper-V's interface is its own."""

    @property
    def lapic(self) -> LapicMsrs | None:
        """Its in-kernel local APIC, if there is one."""

    def queue_exception(self, vector: int, error_code: int | None) -> None:
        """Have an exception injected before the guest's next instruction."""

    def skipped(self) -> bool:
        """An instruction was emulated and RIP moved; False: KVM_EXIT_DEBUG is in the page."""
