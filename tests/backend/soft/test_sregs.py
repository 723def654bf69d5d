"""Which bits of CR4 KVM_SET_SREGS takes, before and after KVM_SET_CPUID2."""

import errno
from dataclasses import replace

import pytest

from kvmsr.kvm import CpuidTable
from tests.conformance.registry import errno_of

FSGSBASE, UMIP, VMXE = 1 << 16, 1 << 11, 1 << 13
REFUSED = (errno.EINVAL, False)
TAKEN = (0, True)


def set_cr4(vcpu, bits):
    """Set bits of CR4; return the errno, and whether CR4 has them afterwards."""
    sregs = vcpu.get_sregs()
    sregs.cr4 |= bits
    return errno_of(vcpu.set_sregs, sregs), bool(vcpu.get_sregs().cr4 & bits)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("linux-6.1-amd", TAKEN),
        ("linux-6.1-intel", TAKEN),
        ("linux-6.18-amd", REFUSED),
        ("pvm", REFUSED),
    ],
)
def test_before_there_is_cpuid(world, profile, expected):
    vcpu = world(profile).cpu().vcpu
    for unsupported in (UMIP, VMXE):
        assert set_cr4(vcpu, unsupported) == REFUSED
    assert set_cr4(vcpu, FSGSBASE) == expected


@pytest.mark.parametrize("profile", ["linux-6.1-amd", "linux-6.18-amd"])
def test_then_cpuid_decides(world, profile):
    kvm = world(profile)
    assert set_cr4(kvm.cpu(cpuid=CpuidTable([])).vcpu, FSGSBASE) == REFUSED
    assert set_cr4(kvm.cpu(cpuid=kvm.cpuid).vcpu, FSGSBASE) == TAKEN


def test_it_gives_nothing_that_kvm_does_not_have(world):
    kvm = world()
    umip = kvm.cpuid.replace(lambda e: replace(e, ecx=e.ecx | 1 << 2) if e.function == 7 else e)
    assert set_cr4(kvm.cpu(cpuid=umip).vcpu, UMIP) == REFUSED
