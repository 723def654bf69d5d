# SPDX-License-Identifier: Apache-2.0
"""C-001 to C-015: the capabilities, and enabling them."""

import errno

from kvmsr.abi import Cap, ioctls, vm
from tests.conformance.outcome import GP, UNKNOWN
from tests.conformance.registry import equal, errno_of, item
from tests.conformance.world import ALL, X

EFER = 0xC0000080
USER_SPACE_MSR = Cap.X86_USER_SPACE_MSR
MSR_FILTER = Cap.X86_MSR_FILTER


@item("C-001")
def system_has_user_space_msr(w):
    """KVM_CHECK_EXTENSION(188) on the system fd returns 1."""
    equal(w.kvm.check_extension(USER_SPACE_MSR), 1)


@item("C-002", "filter")
def system_has_msr_filter(w):
    """KVM_CHECK_EXTENSION(189) on the system fd returns 1."""
    equal(w.kvm.check_extension(MSR_FILTER), 1)


@item("C-003", "filter")
def vm_has_both(w):
    """Both capabilities are 1 on a VM fd, before and after enabling."""
    machine = w.vm()
    for _ in range(2):
        equal(machine.check_extension(USER_SPACE_MSR), 1)
        equal(machine.check_extension(MSR_FILTER), 1)
        machine.enable_cap(USER_SPACE_MSR, ALL)


@item("C-004")
def every_mask_is_taken(w):
    """KVM_ENABLE_CAP(188) takes each of the masks 0 to 7."""
    machine = w.vm()
    for mask in range(8):
        equal(errno_of(machine.enable_cap, USER_SPACE_MSR, mask), 0, f"mask {mask}")


def _refused(w, *arguments, **flags):
    wanted = errno.EINVAL if w.kernel.checks_cap_arguments else 0
    equal(errno_of(w.vm().enable_cap, USER_SPACE_MSR, *arguments, **flags), wanted)


@item("C-005")
def unknown_mask_bit(w):
    """KVM_ENABLE_CAP(188) refuses the mask 8 with EINVAL."""
    _refused(w, 8)


@item("C-006")
def unknown_high_mask_bit(w):
    """KVM_ENABLE_CAP(188) looks at all 64 bits of the mask: 1 << 32 is EINVAL."""
    _refused(w, 1 << 32)


@item("C-007")
def cap_flags(w):
    """KVM_ENABLE_CAP(188) with flags is EINVAL."""
    equal(errno_of(w.vm().enable_cap, USER_SPACE_MSR, 7, flags=1), errno.EINVAL)


@item("C-008", "mask")
def failure_keeps_the_mask(w):
    """After a failed KVM_ENABLE_CAP the former mask is in force."""
    cpu = w.cpu(mask=2)
    equal(errno_of(cpu.vm.enable_cap, USER_SPACE_MSR, 7, flags=1), errno.EINVAL)
    if w.kernel.checks_cap_arguments:
        equal(errno_of(cpu.vm.enable_cap, USER_SPACE_MSR, 15), errno.EINVAL)
    equal(cpu.read(X), UNKNOWN)
    equal(cpu.write(EFER, 2), GP)


@item("C-009")
def wrong_fd(w):
    """KVM_ENABLE_CAP(188) is EINVAL on a vCPU fd and on the system fd."""
    cpu = w.cpu()
    equal(errno_of(cpu.vcpu.enable_cap, USER_SPACE_MSR, 7), errno.EINVAL, "on a vCPU")
    enable = vm.EnableCap(cap=USER_SPACE_MSR)
    equal(errno_of(w.kvm.raw_ioctl, ioctls.KVM_ENABLE_CAP, enable), errno.EINVAL, "on the system")


@item("C-010", "filter")
def filter_cannot_be_enabled(w):
    """KVM_ENABLE_CAP(189) on a VM fd is EINVAL."""
    equal(errno_of(w.vm().enable_cap, MSR_FILTER, 1), errno.EINVAL)


@item("C-011")
def a_new_vm_deflects_nothing(w):
    """A new VM has mask 0: RDMSR X is a #GP."""
    equal(w.cpu(mask=None).read(X), GP)


@item("C-012", "mask")
def masks_replace_each_other(w):
    """Enabling 2 and then 4 leaves UNKNOWN accesses undeflected."""
    cpu = w.cpu(mask=2)
    equal(cpu.read(X), UNKNOWN)
    cpu.vm.enable_user_space_msr(4)
    equal(cpu.read(X), GP)


@item("C-013")
def mask_after_the_first_run(w):
    """A mask that is set after the vCPU has run holds at the next access."""
    cpu = w.cpu(mask=None)
    equal(cpu.read(X), GP)
    cpu.vm.enable_user_space_msr(ALL)
    equal(cpu.read(X), UNKNOWN)
    cpu.vm.enable_user_space_msr(0)
    equal(cpu.read(X), GP)


@item("C-014")
def mask_is_per_vm(w):
    """Another VM of the same process keeps its mask 0."""
    first, other = w.cpu(), w.cpu(mask=None)
    equal(first.read(X), UNKNOWN)
    equal(other.read(X), GP)


@item("C-015")
def mask_is_for_all_vcpus(w):
    """The mask holds for all vCPUs of the VM."""
    for cpu in w.cpus(2):
        equal(cpu.write(X, 1), UNKNOWN)
