"""Changes to single MSRs while a guest runs, as an algebra of policies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import PolicyError
from kvmsr.policy import Log, Op, Plain, Policy, Reason, Rule
from kvmsr.policy.live import changed, live_rules, without_live
from kvmsr.policy.live import given as given_for
from kvmsr.policy.plan import KernelFacts, compile_policy
from kvmsr.policy.plan.segments import cut

INDICES = st.integers(0x10, 0x17)
ACTIONS = st.sampled_from(["fault", "ignore", "shadow", "kernel"])
VALUES = st.one_of(ACTIONS, st.integers(0, (1 << 64) - 1))
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "read": VALUES,
        "write": ACTIONS,
        "reset": st.integers(0, 9),
        "log": st.sampled_from([str(log) for log in Log]),
    },
)


@st.composite
def rules(draw):
    first = draw(INDICES)
    span = (first, draw(st.integers(first, 0x17)))
    read, write = draw(st.none() | VALUES), draw(st.none() | ACTIONS)
    if read is None and write is None:
        write = "ignore"
    when = draw(st.sampled_from([None, {"after": 3}, {"vcpu": 1}, {"reason": "unknown"}]))
    keep = draw(st.booleans()) if "shadow" in (read, write) else False
    return Rule([span], read, write, when=when, keep=keep)


POLICIES = st.lists(rules(), max_size=4).map(Policy)


def tried(policy, index, op):
    """Return what happens to accesses, in turn, without where that is written."""
    found = cut(policy, op, KernelFacts()).find(index).rules
    return [(rule.action(op), rule.when, rule.log) for rule in found]


@given(POLICIES, INDICES, CHANGES)
def test_without_its_changes_a_policy_is_what_it_was(policy, index, change):
    made = changed(policy, index, **change)
    assert without_live(made) == policy
    assert made.rules == (*live_rules(made), *policy.rules)


@given(POLICIES, INDICES, CHANGES)
def test_other_msrs_stay_as_they_are(policy, index, change):
    made = changed(policy, index, **change)
    for other in set(range(0x10, 0x18)) - {index}:
        for op in Op:
            assert tried(made, other, op) == tried(policy, other, op)


@given(POLICIES, INDICES, INDICES, CHANGES, CHANGES)
def test_changes_of_different_msrs_commute_and_the_last_one_of_an_msr_counts(
    policy, one, other, first, second
):
    both = changed(changed(policy, one, **first), other, **second)
    if one == other:
        assert both == changed(policy, one, **second)
    else:
        assert both == changed(changed(policy, other, **second), one, **first)
    assert changed(changed(policy, one, **first), one) == policy


@given(POLICIES, INDICES, CHANGES)
def test_what_is_changed_happens(policy, index, change):
    made = changed(policy, index, **change)
    for op in Op:
        now, before = tried(made, index, op), tried(policy, index, op)
        wanted = change.get(str(op))
        if wanted is not None:
            [(action, when, log)] = now
            assert str(action) == (wanted if isinstance(wanted, str) else f"value {wanted:#x}")
            assert (when, log) == (None, change.get("log"))
        elif "log" in change:
            assert [one[:2] for one in now][: len(before)] == [one[:2] for one in before]
            assert {one[2] for one in now} == {change["log"]}
        else:
            assert now == before


@given(POLICIES, INDICES, CHANGES)
def test_how_an_msr_was_changed_is_known(policy, index, change):
    made = changed(policy, index, **change)
    assert changed(policy, index, **given_for(made, index)) == made
    assert given_for(policy, index) == given_for(made, 0x18) == {}


def test_logging_what_no_rule_decides_leaves_it_to_kvm_first():
    made = changed(Policy(), 0x277, log="always")
    plan = compile_policy(made)
    assert plan.filter.ranges == ()  # the filter denies nothing that KVM handles
    assert [rule.when.reason for rule in plan.reads.find(0x277).rules] == [
        (Reason.UNKNOWN,),
        (Reason.INVALID,),
    ]
    assert {rule.read for rule in plan.reads.find(0x277).rules} == {Plain.FAULT}


@pytest.mark.parametrize(
    "change", [{"read": "ignroe"}, {"write": 5}, {"log": "often"}, {"read": 1 << 64}]
)
def test_what_is_wrong_is_refused(change):
    with pytest.raises(PolicyError):
        changed(Policy(), 0x10, **change)
