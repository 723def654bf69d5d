"""What a plan takes from KVM to be seen, and what it leaves with KVM."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsr.errors import FilterCapacityError, PolicyError
from kvmsr.msr import handled
from kvmsr.msr.as_host import REFUSED, as_host
from kvmsr.policy import Defaults, Op, Policy, Reason, Rule
from kvmsr.policy.plan import KernelFacts, compile_policy, not_observed_lines
from tests.policy.plan.test_filter import points
from tests.policy.plan.test_plan import kernels, knows, rules

R, W = Op.READ, Op.WRITE
EFER, LSTAR, DE_CFG, PLATFORM_INFO, X2APIC_ID = 0xC0000080, 0xC0000082, 0xC0011029, 0xCE, 0x802


def denied(plan, op, index):
    return plan.filter.decide(op, index)[0]


def compared(op, index):
    """Return what the table says about the MSR: "" if KVM does the same for the host."""
    for row in as_host():
        if row.first <= index <= row.last:
            return row.reads if op is R else row.writes
    return None


def observes(policy, index):
    return any(first <= index <= last for first, last in policy.observe)


@given(
    st.lists(rules(), max_size=6),
    st.lists(st.tuples(points, st.sampled_from([0, 1, 0x80, 0x4000, 0x40000])), max_size=5),
    kernels() | st.builds(KernelFacts, ignore_msrs=st.booleans()),
)
@settings(max_examples=60)
def test_it_takes_what_is_the_same_for_the_host_and_nothing_else(found, spans, kernel):
    plain = Policy(found)
    observing = plain.observing(
        Policy(observe=[(first, min(first + more, (1 << 32) - 1)) for first, more in spans]).observe
    )
    try:
        before = compile_policy(plain, kernel)
    except FilterCapacityError:
        with pytest.raises(FilterCapacityError):
            compile_policy(observing, kernel)
        return
    plan = compile_policy(observing, kernel)
    assert len(plan.filter.ranges) <= max(12, len(before.filter.ranges))
    places = {place for row in as_host() for place in (row.first, row.last, row.last + 1)}
    places |= {place for first, last in observing.observe for place in (first, last)}
    for index in places:
        for op in Op:
            rules_say = any(rule.asks_for(op) for rule in before.segment(op, index).rules)
            wanted = observes(observing, index) and knows(kernel, op, index) and not rules_say
            same = compared(op, index) == ""
            left = plan.why_not_observed(op, index)
            if wanted and same and not left:
                assert denied(plan, op, index)
            if wanted and not same and compared(op, index) != REFUSED:
                assert left
            if not wanted:
                assert not left
            if knows(kernel, op, index) and (left or not wanted):
                assert denied(plan, op, index) == denied(before, op, index)
            assert plan.segment(op, index).rules == before.segment(op, index).rules


def test_all_fits_beside_what_another_vmm_may_want():
    plan = compile_policy(Policy(observe="all"))
    assert len(plan.filter.ranges) <= 12
    assert all(one.why for one in plan.not_observed)
    assert not any("room" in one.why for one in plan.not_observed)
    taken = [i for one in handled() for i in range(one.first, one.last + 1) if denied(plan, R, i)]
    assert {EFER, LSTAR, DE_CFG, 0x277, 0x400} <= set(taken)
    assert Reason.FILTER in plan.reasons


@pytest.mark.parametrize(
    ("op", "index", "why"),
    [
        (W, DE_CFG, "a guest may write what is so anyway"),
        (W, 0x8B, "where a guest's write is dropped"),
        (R, 0x10A, "guest's CPUID"),
        (W, EFER, "neither CPUID nor the paging mode is checked"),
        (R, X2APIC_ID, "never filters x2APIC"),
        (W, 0x405, "MCi_STATUS"),
    ],
)
def test_what_is_left_has_a_reason(op, index, why):
    plan = compile_policy(Policy(observe=index))
    assert why in plan.why_not_observed(op, index)
    assert not denied(plan, op, index)
    assert [one.as_dict() for one in plan.not_observed if one.op is op] == [
        {"op": str(op), "msrs": [f"{index:#x}"], "why": plan.why_not_observed(op, index)}
    ]


def test_what_kvm_refuses_is_seen_anyway():
    plan = compile_policy(Policy(observe=PLATFORM_INFO))
    assert not denied(plan, W, PLATFORM_INFO)
    assert [one.op for one in plan.not_observed] == [R]


def test_a_rule_comes_first():
    plan = compile_policy(Policy([Rule(DE_CFG, write="shadow")], observe="all"))
    assert denied(plan, W, DE_CFG)
    assert not plan.why_not_observed(W, DE_CFG)


def test_what_a_cpu_may_refuse_is_left_if_the_policy_has_something_to_say_about_it():
    assert denied(compile_policy(Policy(observe="all")), W, LSTAR)
    lenient = compile_policy(Policy(defaults=Defaults(invalid="ignore"), observe="all"))
    assert "defaults.invalid" in lenient.why_not_observed(W, LSTAR)
    assert not denied(lenient, W, LSTAR)
    waiting = Rule(LSTAR, write="ignore", when={"reason": "invalid"})
    assert not denied(compile_policy(Policy([waiting], observe="all")), W, LSTAR)


def test_an_msr_of_a_newer_kvm_is_left():
    plan = compile_policy(Policy(observe="all"), KernelFacts().knowing([0x35]))
    assert not denied(plan, R, 0x35)
    assert "not known" in plan.why_not_observed(R, 0x35)


def test_rules_keep_their_room():
    wide = [Rule(0x100000 * n, read=1) for n in range(1, 12)]
    kernel = KernelFacts().knowing(0x100000 * n for n in range(1, 12))
    before = compile_policy(Policy(wide), kernel)
    plan = compile_policy(Policy(wide, observe="all"), kernel)
    assert len(before.filter.ranges) == 11
    assert len(plan.filter.ranges) <= 12
    assert all(denied(plan, R, 0x100000 * n) for n in range(1, 12))
    assert "no room" in plan.why_not_observed(R, EFER)
    assert not denied(plan, R, EFER)


def test_lines_for_people_are_few():
    few = not_observed_lines(compile_policy(Policy(observe="MSR_AMD64_DE_CFG")).not_observed)
    assert len(few) == 1
    assert few[0].startswith("not observed: writes of 0xc0011029 (MSR_AMD64_DE_CFG): other values")
    (many,) = not_observed_lines(compile_policy(Policy(observe="all")).not_observed)
    assert "as the guest would notice" in many
    assert not_observed_lines(()) == []


@pytest.mark.parametrize("spec", ["IA32_NOPE", "9-3", 1 << 32, [True], 1.5, b"\x10"])
def test_what_selects_nothing_is_refused(spec):
    with pytest.raises(PolicyError):
        Policy(observe=spec)
