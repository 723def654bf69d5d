"""What the knowledge tower says of KVM's limits is what KVM's ABI says."""

from itertools import pairwise

from kvmsr import abi
from kvmsr.msr import handled
from kvmsr.policy import kernel


def test_limits_are_kvms():
    assert kernel.MAX_RANGES == abi.MSR_FILTER_MAX_RANGES
    assert kernel.MAX_RANGE_MSRS == abi.MSR_FILTER_MAX_MSRS == 0x3000
    assert kernel.X2APIC == (0x800, 0x8FF)


def test_handled_msrs_are_ascending_and_apart():
    ranges = handled()
    assert all(r.first <= r.last and (r.reads or r.writes) for r in ranges)
    assert all(a.last < b.first for a, b in pairwise(ranges))
