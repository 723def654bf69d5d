"""MSR_CORE_THREAD_COUNT counts the threads and cores of one package, not of the whole machine."""

import pytest

from kvmsr.dispatch import Dispatcher
from kvmsr.policy import Access, Model, Op, Policy, Reason, Rule, Topology
from kvmsr.policy.plan import compile_policy
from tests.harness import machine_with

RULE = Rule("MSR_CORE_THREAD_COUNT", read=Model("topology.core-thread-count"), write="fault")


@pytest.mark.parametrize(
    ("topology", "vcpus", "expected"),
    [
        (Topology(), 1, [0x1_0001]),
        (Topology(), 3, [0x3_0003] * 3),
        (Topology(2, 2), 8, [0x2_0004] * 8),
        (Topology(2, 2), 7, [0x2_0004] * 4 + [0x2_0003] * 3),
        (Topology(2, 1), 3, [0x1_0002] * 2 + [0x1_0001]),
    ],
)
def test_each_package_counts_its_own(topology, vcpus, expected):
    plan = compile_policy(Policy([RULE], topology=topology))
    d = Dispatcher(plan, vcpus=vcpus)
    accesses = [Access(vcpu, Op.READ, 0x35, 0, Reason.UNKNOWN) for vcpu in range(vcpus)]
    assert [d.handle(access).value for access in accesses] == expected


def test_a_guest_reads_it(any_backend, tmp_path):
    # mov $0x35, %ecx; rdmsr; out %al, $0xf4
    code = b"\x66\xb9\x35\0\0\0\x0f\x32\xe6\xf4"
    policy = Policy([RULE], topology=Topology(2, 2))
    with machine_with(tmp_path, code, policy, any_backend, cpus=3) as machine:
        result = machine.run(timeout=30)
    (row,) = result.summary
    assert (row.index, row.last_value) == (0x35, 0x2_0003)
