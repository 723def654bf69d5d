# SPDX-License-Identifier: Apache-2.0
"""
The system handle
-----------------

KVM itself: what it supports, and new virtual machines.
"""

import errno
from collections.abc import Iterable

from kvmsr import backend as backends
from kvmsr.abi import KVM_API_VERSION, Word, cap_name, ioctls, vm
from kvmsr.backend.protocol import Backend
from kvmsr.errors import (
    BackendError,
    BrokenInvariantError,
    CapabilityError,
    IoctlError,
    UsageError,
)
from kvmsr.kvm import cpuid, msrs
from kvmsr.kvm.handle import Handle
from kvmsr.kvm.vm import Vm

__all__ = ("Kvm",)


class Kvm(Handle):
    """
    The system file descriptor.

    :param backend: who executes guests, or a name for :func:`kvmsr.backend.open`.
    :raises BackendError: if it cannot be opened or speaks another version of the API.
    :raises UsageError: if there is no backend of that name.
    """

    def __init__(self, backend: Backend | str = "auto") -> None:
        found: object = backends.open(backend) if isinstance(backend, str) else backend
        if not isinstance(found, Backend):
            names = ", ".join(backends.NAMES)
            raise UsageError(f"backend={backend!r}: give a Backend, or a name: {names}")
        super().__init__(found, found.open())
        try:
            version = self.api_version()
            if version != KVM_API_VERSION:
                raise BackendError(
                    f"this KVM speaks version {version} of its API and kvmsr speaks"
                    f" {KVM_API_VERSION}"
                )
        except BaseException:
            self.close()
            raise

    def api_version(self) -> int:
        """Return the API's version (KVM_GET_API_VERSION): 12 since 2007."""
        return self.ioctl(ioctls.KVM_GET_API_VERSION)

    def check_extension(self, cap: int) -> int:
        """Return 0 if *cap* is not supported, else 1 or what the capability says."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, int(cap))

    def require(self, *caps: int) -> None:
        """
        Insist on capabilities.

        :raises CapabilityError: naming all that are missing.
        """
        missing = [cap_name(cap) for cap in caps if not self.check_extension(cap)]
        if missing:
            raise CapabilityError(
                f"this KVM lacks {', '.join(missing)}; Linux 5.10 or later has what kvmsr needs"
            )

    def vcpu_mmap_size(self) -> int:
        """Return how many bytes of a vCPU are to be mapped (KVM_GET_VCPU_MMAP_SIZE)."""
        return self.ioctl(ioctls.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self, machine_type: int = 0) -> Vm:
        """Create a virtual machine (KVM_CREATE_VM) without memory and without vCPUs."""
        size = self.vcpu_mmap_size()
        return Vm(self.backend, self.ioctl(ioctls.KVM_CREATE_VM, machine_type), size)

    def get_supported_cpuid(self) -> cpuid.CpuidTable:
        """Return the CPUID leaves that host and KVM support (KVM_GET_SUPPORTED_CPUID)."""
        return self._cpuid(ioctls.KVM_GET_SUPPORTED_CPUID)

    def get_emulated_cpuid(self) -> cpuid.CpuidTable:
        """Return the CPUID features that KVM emulates though slowly (KVM_GET_EMULATED_CPUID)."""
        return self._cpuid(ioctls.KVM_GET_EMULATED_CPUID)

    def _cpuid(self, request: int) -> cpuid.CpuidTable:
        try:
            return cpuid.from_kvm(lambda table: self.raw_ioctl(request, table))
        except OSError as error:
            raise IoctlError(ioctls.NAMES[request], error.errno or 0) from None

    def get_msr_index_list(self) -> tuple[int, ...]:
        """
        Return the MSRs to save and restore (KVM_GET_MSR_INDEX_LIST).

        Neither all that KVM handles (MTRRs, machine-check banks, EFER, APIC_BASE are missing), nor
        only those that a guest has.
        """
        return self._msr_list(ioctls.KVM_GET_MSR_INDEX_LIST)

    def get_msr_feature_index_list(self) -> tuple[int, ...]:
        """Return the MSRs that describe features (KVM_GET_MSR_FEATURE_INDEX_LIST)."""
        return self._msr_list(ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def _msr_list(self, request: int) -> tuple[int, ...]:
        count = 0
        for _ in range(8):  # the lists are fixed: the second round knows the count
            found = vm.msr_list(count)
            found.nmsrs = count
            try:
                self.raw_ioctl(request, found)
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise IoctlError(ioctls.NAMES[request], error.errno or 0) from None
                count = found.nmsrs
                continue
            return tuple(found.indices[: found.nmsrs])
        raise BrokenInvariantError(f"{ioctls.NAMES[request]} asks for more room again and again")

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """
        Return what host and KVM support in feature MSRs (KVM_GET_MSRS on the system fd).

        :raises MsrListError: at the first index that is no feature MSR.
        """
        return msrs.get(self, indices)

    def get_mce_cap_supported(self) -> int:
        """Return the bits of MCG_CAP that a guest may have (KVM_X86_GET_MCE_CAP_SUPPORTED)."""
        caps = Word()
        self.ioctl(ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED, caps)
        return caps.value
