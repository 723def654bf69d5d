"""Which vCPUs share a register."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import PolicyError
from kvmsr.policy import Scope, Topology


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40))
def test_units_are_what_walking_along_the_vcpus_gives(threads, cores, vcpus):
    topology = Topology(threads, cores)
    vcpu = 0
    for package in range(vcpus):
        for core in range(cores):
            for _ in range(threads):
                if vcpu < vcpus:
                    assert topology.unit(Scope.THREAD, vcpu) == vcpu
                    assert topology.unit(Scope.CORE, vcpu) == package * cores + core
                    assert topology.unit(Scope.PACKAGE, vcpu) == package
                    assert topology.unit(Scope.VM, vcpu) == 0
                vcpu += 1


def test_by_default_every_vcpu_is_a_core_of_one_package():
    topology = Topology()
    assert topology.unit(Scope.CORE, 7) == 7
    assert topology.unit(Scope.PACKAGE, 7) == 0
    assert topology.members(Scope.PACKAGE, 0, 3) == (0, 1, 2)
    assert topology.members(Scope.CORE, 2, 3) == (2,)


@pytest.mark.parametrize("wrong", [{"threads_per_core": 0}, {"cores_per_package": True}])
def test_a_topology_has_at_least_one_of_each(wrong):
    with pytest.raises(PolicyError, match="must be 1 or more"):
        Topology(**wrong)
