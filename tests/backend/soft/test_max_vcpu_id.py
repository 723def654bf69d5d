"""KVM_CAP_MAX_VCPU_ID: the numbers that vCPUs may have."""

import errno

from kvmsr.abi import Cap, ioctls
from tests.conformance.registry import errno_of


def bound(vm, value):
    return errno_of(vm.enable_cap, Cap.MAX_VCPU_ID, value)


def create(vm, number):
    return errno_of(vm.raw_ioctl, ioctls.KVM_CREATE_VCPU, number)


def test_a_bound_is_taken_once(world):
    vm = world().vm()
    most = vm.check_extension(Cap.MAX_VCPU_ID)
    assert bound(vm, most + 1) == errno.EINVAL
    assert (bound(vm, 2), bound(vm, 2), bound(vm, 3)) == (0, 0, errno.EINVAL)
    assert [create(vm, number) for number in (2, 1)] == [errno.EINVAL, 0]


def test_it_comes_too_late_once_there_are_vcpus(world):
    vm = world().vm()
    most = vm.check_extension(Cap.MAX_VCPU_ID)
    assert [create(vm, number) for number in (most, 0)] == [errno.EINVAL, 0]
    assert (bound(vm, 2), bound(vm, most)) == (errno.EINVAL, 0)
