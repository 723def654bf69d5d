"""KVM_GET_SUPPORTED_HV_CPUID, on the system's handle and on a vCPU's."""

import errno
import struct

import pytest

from kvmsr.abi import Cap
from tests.backend.soft.hyperv.windows import FEATURES, supported
from tests.conformance.registry import errno_of

DIRECT_STIMERS, TSC_INVARIANT = 1 << 19, 1 << 15


def test_it_needs_room_for_all_leaves(world):
    kvm = world()
    for fd in (kvm.kvm, kvm.cpu().vcpu):
        assert errno_of(supported, fd, 9) == errno.E2BIG
        assert len(supported(fd, 10)) == len(supported(fd, 20)) == 10


def test_what_it_says(world):
    leaves = supported(world().kvm)
    assert leaves[0x40000000] == (0x40000082, *struct.unpack("<3I", b"Linux KVM Hv"))
    assert leaves[0x40000001][0].to_bytes(4, "little") == b"Hv#1"
    assert leaves[0x40000081][0].to_bytes(4, "little") == b"VS#1"


def test_a_vcpu_without_a_local_apic_gets_no_direct_timers(world):
    kvm = world()
    assert supported(kvm.kvm)[FEATURES][3] & DIRECT_STIMERS
    assert supported(kvm.cpu(irqchip=True).vcpu)[FEATURES][3] & DIRECT_STIMERS
    assert not supported(kvm.cpu().vcpu)[FEATURES][3] & DIRECT_STIMERS


@pytest.mark.parametrize(("profile", "there"), [("linux-6.1-amd", False), ("linux-6.18-amd", True)])
def test_newer_kernels_offer_more(world, profile, there):
    assert bool(supported(world(profile).kvm)[FEATURES][0] & TSC_INVARIANT) == there


def test_kvm_pvm_has_none_of_it(world):
    kvm = world("pvm")
    assert errno_of(supported, kvm.kvm) == errno_of(supported, kvm.cpu().vcpu) == errno.EINVAL
    assert not any(kvm.kvm.check_extension(cap) for cap in Cap if cap.name.startswith("HYPERV"))
    assert errno_of(kvm.cpu().vcpu.enable_cap, Cap.HYPERV_ENFORCE_CPUID, 1) == errno.EINVAL
