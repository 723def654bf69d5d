"""Which CPUID features a policy answers, and what its owner is told about them."""

import pytest

from kvmsr.msr import enumerated, features
from kvmsr.policy import Model, Policy, Rule
from kvmsr.policy.enumeration import (
    enumerated_by,
    enumeration_lines,
    enumeration_of,
    unseen_line,
)

PAIR = [0xE7, 0xE8]


def names(*rules):
    return [one.name for one in enumerated_by(Policy(rules))]


@pytest.mark.parametrize(
    "action", ["shadow", 5, lambda access: 7, Model("aperf-mperf")], ids=lambda a: type(a).__name__
)
def test_what_rules_answer_counts(action):
    assert names(Rule(PAIR, action)) == ["aperfmperf"]


@pytest.mark.parametrize("action", ["fault", "ignore", "kernel", "stop"])
def test_what_they_refuse_or_leave_does_not(action):
    assert names(Rule(PAIR, action)) == []
    assert names(Rule(0xE7, action), Rule(PAIR, 5)) == []
    only_at_times = Rule(0xE7, action, when={"cpl": [3]})
    assert names(only_at_times, Rule(PAIR, 5)) == ["aperfmperf"]


def test_all_msrs_of_a_feature_must_be_answered_when_read():
    assert names(Rule(0xE7, 5)) == []
    assert names(Rule(0xE7, 5), Rule(0xE8, 6)) == ["aperfmperf"]
    assert names(Rule(PAIR, write="shadow")) == []


def test_a_rule_for_everything_means_no_msr_in_particular():
    assert names(Rule("0-0xffffffff", lambda access: 0)) == []
    assert names(Rule("0xe0-0xff", 5)) == ["aperfmperf"]
    assert names(Rule("0xe7-0x1e7", 5), Rule(PAIR, 5)) == []  # the first rule answers


def test_the_data_names_features_and_msrs():
    for one in enumerated():
        assert features()[one.name] == one.feature
        assert "0x" not in one.msr_names
    assert str(next(one for one in enumerated() if one.name == "rapl")) == (
        "rapl (CPUID.80000007H:EDX[14], AMD)"
    )


def test_lines_for_the_owner():
    policy = Policy([Rule([0x1B0, *PAIR], 6), Rule(0x199, "shadow")])
    (line,) = enumeration_lines(policy)
    assert "CPUID shows aperfmperf (CPUID.06H:ECX[0]), epb (CPUID.06H:ECX[3], Intel): " in line
    assert enumeration_lines(Policy([Rule(0x35, 7)])) == []
    (line,) = enumeration_of(policy, 0x1B0)
    assert line.endswith("epb (CPUID.06H:ECX[3], Intel); kvmsr run shows it under this policy,"
                         " another VMM has to")  # fmt: skip
    (line,) = enumeration_of(policy, 0x199)
    assert line.endswith("as no rule answers reads of IA32_PERF_STATUS")
    assert enumeration_of(policy, 0x35) == []


def test_what_no_guest_looked_for():
    policy = Policy([Rule([0x1B0, *PAIR], 6)])
    (line,) = unseen_line(policy, "GenuineIntel", {0x35, 0x1B0})
    assert "aperfmperf" in line
    assert "epb" not in line
    (line,) = unseen_line(policy, "GenuineIntel", {0x35})
    assert "aperfmperf (CPUID.06H:ECX[0]), epb" in line
    assert "epb" not in unseen_line(policy, "AuthenticAMD", {0x35})[0]
    assert unseen_line(policy, "AuthenticAMD", {0xE8}) == []
