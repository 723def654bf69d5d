# SPDX-License-Identifier: Apache-2.0
"""
A vCPU's share
--------------

What of Hyper-V's interface belongs to one vCPU (struct kvm_vcpu_hv).
"""

import time
from collections.abc import Callable

from kvmsr.backend.soft.hyperv.cpuid import Features, features_of
from kvmsr.backend.soft.hyperv.partition import Partition
from kvmsr.backend.soft.hyperv.stimers import Stimers
from kvmsr.backend.soft.hyperv.synic import Synic, SynicVcpu
from kvmsr.backend.soft.msr.cpuid import GuestCpuid

__all__ = ("HypervVcpu",)


class HypervVcpu:
    """
    What a vCPU has.

    :param now: returns the nanoseconds of the VM's clock.
    :ivar vp_index: HV_X64_MSR_VP_INDEX.
    :ivar enforces: MSRs and hypercalls ask for their CPUID bits (KVM_CAP_HYPERV_ENFORCE_CPUID).
    :ivar vapic: HV_X64_MSR_VP_ASSIST_PAGE.
    :ivar asked: what user space has to hear of before the guest goes on: a MSR of the SynIC or of
        the debugger, ``crash`` or ``reset``.
    """

    def __init__(
        self, vcpu: SynicVcpu, partition: Partition, vp_index: int, now: Callable[[], int]
    ) -> None:
        self.vp_index = vp_index
        self.enforces = False
        self.vapic = self._runtime_ahead = 0
        self.asked: int | str | None = None
        self.synic = Synic(vcpu)
        self.stimers = Stimers(vcpu, self.synic, partition.time, now)
        self._cpuid: GuestCpuid | None = None
        self._features = Features(False)

    def features(self, cpuid: GuestCpuid) -> Features:
        """Return the feature bits of *cpuid*, the guest's."""
        if cpuid is not self._cpuid:
            self._cpuid, self._features = cpuid, features_of(cpuid)
        return self._features

    @property
    def runtime(self) -> int:
        """HV_X64_MSR_VP_RUNTIME: how long this thread has run, in units of 100 nanoseconds."""
        return time.thread_time_ns() // 100 + self._runtime_ahead

    @runtime.setter
    def runtime(self, value: int) -> None:
        self._runtime_ahead = value - time.thread_time_ns() // 100
