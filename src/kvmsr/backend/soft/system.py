# SPDX-License-Identifier: Apache-2.0
"""
System ioctls
-------------

What an open /dev/kvm takes: kvm_dev_ioctl and kvm_arch_dev_ioctl of the kernel.
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from kvmsr.abi import KVM_API_VERSION, ioctls
from kvmsr.backend.soft.capabilities import check_extension
from kvmsr.backend.soft.features import supported_cpuid
from kvmsr.backend.soft.hyperv.cpuid import supported_hv_cpuid
from kvmsr.backend.soft.msr.lists import feature_index_list, index_list, kvm_get_feature_msrs
from kvmsr.backend.soft.msr.mce import supported_mcg_cap
from kvmsr.backend.soft.page import MMAP_SIZE
from kvmsr.backend.soft.profile import Profile
from kvmsr.backend.soft.tables import read_msrs, write_cpuid, write_indices, write_msrs
from kvmsr.backend.soft.uaccess import write_user

__all__ = ("SYSTEM_IOCTLS", "System")


class System:
    """An open /dev/kvm."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def close(self) -> None:
        """End; VMs live on."""


def _without_argument(value: int) -> Callable[[System, int], int]:
    def get(_system: System, arg: int) -> int:
        if arg:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return value

    return get


def _get_msrs(system: System, arg: int) -> int:
    count, entries = kvm_get_feature_msrs(system.profile, read_msrs(arg))
    write_msrs(arg, entries)
    return count


def _get_mce_cap(system: System, arg: int) -> int:
    write_user(arg, supported_mcg_cap(system.profile).to_bytes(8, "little"))
    return 0


def _get_hv_cpuid(system: System, arg: int) -> int:
    if not system.profile.hyperv:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return write_cpuid(arg, supported_hv_cpuid(system.profile, lapic=True))


SYSTEM_IOCTLS: Final[dict[int, Callable[[System, int], int]]] = {
    ioctls.KVM_GET_API_VERSION: _without_argument(KVM_API_VERSION),
    ioctls.KVM_GET_VCPU_MMAP_SIZE: _without_argument(MMAP_SIZE),
    ioctls.KVM_CHECK_EXTENSION: lambda system, arg: check_extension(system.profile, arg),
    ioctls.KVM_GET_SUPPORTED_CPUID: lambda system, arg: write_cpuid(
        arg, supported_cpuid(system.profile)
    ),
    ioctls.KVM_GET_EMULATED_CPUID: lambda _system, arg: write_cpuid(arg, ()),
    ioctls.KVM_GET_SUPPORTED_HV_CPUID: _get_hv_cpuid,
    ioctls.KVM_GET_MSR_INDEX_LIST: lambda system, arg: write_indices(
        arg, index_list(system.profile)
    ),
    ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST: lambda system, arg: write_indices(
        arg, feature_index_list(system.profile)
    ),
    ioctls.KVM_GET_MSRS: _get_msrs,
    ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED: _get_mce_cap,
}
"""What the system fd takes; KVM_CREATE_VM is apart."""
