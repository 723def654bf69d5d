"""What the knowledge tower says of KVM's limits is what KVM's ABI says."""

from itertools import pairwise

from kvmsr import abi
from kvmsr.msr import X2APIC, handled
from kvmsr.policy.plan import facts


def test_limits_are_kvms():
    assert facts.MAX_RANGES == abi.MSR_FILTER_MAX_RANGES
    assert facts.MAX_RANGE_MSRS == abi.MSR_FILTER_MAX_MSRS == 0x3000
    assert X2APIC == (0x800, 0x8FF)


def test_handled_msrs_are_ascending_and_apart():
    ranges = handled()
    assert all(r.first <= r.last and (r.reads or r.writes) for r in ranges)
    assert all(a.last < b.first for a, b in pairwise(ranges))
