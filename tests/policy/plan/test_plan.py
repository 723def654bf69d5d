"""Plans against a model of the whole decision: KVM's, and what the policy asks of it."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvmsr.errors import FilterCapacityError, PolicyError
from kvmsr.msr import HandledRange, handled
from kvmsr.policy import Defaults, Op, Policy, Reason, Rule, When
from kvmsr.policy.plan import KernelFacts, compile_policy
from tests.policy.plan.test_filter import TOP, kvm_allows, points

OPS = {Op.READ: "reads", Op.WRITE: "writes"}


def knows(kernel: KernelFacts, op: Op, index: int) -> bool:
    ranges = (r for r in kernel.handled if (r.reads if op is Op.READ else r.writes))
    return any(r.first <= index <= r.last for r in ranges)


def asks(policy: Policy, op: Op, index: int) -> list[Rule]:
    """Return the rules that are for the MSR and direction, to the first without a condition."""
    found = []
    for rule in policy.rules:
        if rule.action(op) is None or (rule.when and rule.when.cpl == (3,)):
            continue
        if any(first <= index <= last for first, last in rule.msrs):
            found.append(rule)
            if rule.when is None:
                break
    return found


def wants_it(rule: Rule, op: Op) -> bool:
    """Tell whether the rule may have a say before KVM has."""
    if str(rule.action(op)) == "kernel":
        return False
    return rule.when is None or rule.when.reason is None or "filter" in rule.when.reason


def handed_over(plan, kernel: KernelFacts, op: Op, index: int) -> bool:
    """Tell whether KVM hands the access over, where it does not refuse its value."""
    if not kvm_allows(plan.filter, index, OPS[op]):
        return True
    return not knows(kernel, op, index) and not kernel.ignore_msrs


def check(plan, policy: Policy, kernel: KernelFacts) -> None:
    places = {0, TOP}
    for first, last in [span for rule in policy.rules for span in rule.msrs]:
        places |= {first - 1, first, last, last + 1}
    for r in kernel.handled:
        places |= {r.first - 1, r.first, r.last, r.last + 1}
    for r in plan.filter.ranges:
        places |= {r.base - 1, r.base, r.base + r.count - 1, r.base + r.count}
        bits = int.from_bytes(r.bitmap, "little")
        changes = bits ^ bits >> 1
        places |= {r.base + k + d for k in range(r.count) if changes >> k & 1 for d in (0, 1)}
    for index in sorted(place for place in places if 0 <= place <= TOP):
        if 0x800 <= index <= 0x8FF:
            continue
        for op in Op:
            found = asks(policy, op, index)
            ours = any(wants_it(rule, op) for rule in found)
            # Left to KVM: it handles what it knows, and what it does not know comes over.
            wanted = ours or not knows(kernel, op, index)
            assert handed_over(plan, kernel, op, index) == wanted, (hex(index), op, found)
            assert list(plan.segment(op, index).rules) == found
            # A rule that asks for a reason is asked with the one that is meant.
            reasons = {r for rule in found if rule.when for r in rule.when.reason or ()}
            if reasons and not knows(kernel, op, index) and not kernel.ignore_msrs:
                denied = not kvm_allows(plan.filter, index, OPS[op])
                assert denied == (Reason.FILTER in reasons)


actions = st.sampled_from(["kernel", "fault", "ignore", "shadow", "stop"])


conditions = st.builds(
    When,
    vcpu=st.just(0),
    cpl=st.none() | st.sampled_from([0, 3]),
    reason=st.none() | st.lists(st.sampled_from(list(Reason)), min_size=1, max_size=2),
)


@st.composite
def rules(draw):
    first = draw(points)
    last = min(first + draw(st.sampled_from([0, 0, 1, 7, 0x100, 0x3000, 0x20000])), TOP)
    assume(not 0x800 <= first <= last <= 0x8FF)
    read = draw(st.none() | actions)
    write = draw(actions if read is None else st.none() | actions)
    return Rule(f"{first}-{last}", read, write, when=draw(st.none() | conditions))


@st.composite
def kernels(draw):
    borders = sorted(set(draw(st.lists(points, max_size=12))))
    spans = zip(borders[::2], borders[1::2], strict=False)
    found = [
        HandledRange(
            first, min(last - 1, first + 0x2000), *draw(st.tuples(st.booleans(), st.booleans()))
        )
        for first, last in spans
    ]
    return KernelFacts(tuple(found), draw(st.booleans()))


@given(
    st.lists(rules(), max_size=12), kernels() | st.builds(KernelFacts, ignore_msrs=st.booleans())
)
@settings(max_examples=300)
def test_every_access_goes_where_the_policy_wants_it(rules, kernel):
    policy = Policy(rules)
    try:
        plan = compile_policy(policy, kernel)
    except FilterCapacityError as error:
        assert "do not fit" in str(error)
        return
    check(plan, policy, kernel)


def test_msrs_that_kvm_does_not_know_need_no_range():
    plan = compile_policy(Policy([Rule([0x35, 0x1AD, 0xC0010299], read=1, write="ignore")]))
    assert plan.filter.ranges == ()
    assert plan.reasons == {Reason.UNKNOWN, Reason.INVALID}
    assert (0x35, 0x35) in plan.relied_on()


def test_unless_the_host_swallows_them():
    policy = Policy([Rule(0x35, read=1)])
    kernel = KernelFacts(ignore_msrs=True)
    plan = compile_policy(policy, kernel)
    check(plan, policy, kernel)
    assert plan.filter.default_deny
    assert len(plan.filter.ranges) <= 16
    assert plan.relied_on() == ()
    assert any("ignore_msrs" in warning for warning in plan.warnings)


def test_an_msr_that_this_kvm_turns_out_to_know_gets_a_range():
    policy = Policy([Rule(0x35, read=1)])
    plan = compile_policy(policy, KernelFacts().knowing([0x35]))
    assert [(r.base, r.count, r.reads, r.writes) for r in plan.filter.ranges] == [
        (0x35, 1, True, False)
    ]
    assert Reason.FILTER in plan.reasons


def test_knowing_keeps_what_was_known():
    facts = KernelFacts().knowing([0x35, 0x10, 0xC0010200])
    for op in Op:
        for index in (0x10, 0x35, 0xC0010200):
            assert knows(facts, op, index)
    for known in handled():
        assert knows(facts, Op.READ, known.last) or not known.reads
    assert list(facts.handled) == sorted(facts.handled)


def test_first_match_wins_for_each_direction_by_itself():
    policy = Policy([Rule("0x10-0x20", read=1), Rule(0x18, read=2, write="fault")])
    plan = compile_policy(policy)
    one, other = policy.rules
    assert plan.segment(Op.READ, 0x18).rules == (one,)
    assert plan.segment(Op.WRITE, 0x18).rules == (other,)
    assert plan.segment(Op.WRITE, 0x10).rules == ()


def test_rules_with_a_condition_are_tried_until_one_has_none():
    often = Rule("0x10-0x20", read=1, when={"every": 2})
    policy = Policy([often, Rule(0x18, read=2), Rule("0x0-0x30", read=3)])
    plan = compile_policy(policy)
    one, two, three = policy.rules
    assert plan.segment(Op.READ, 0x18).rules == (one, two)
    assert plan.segment(Op.READ, 0x19).rules == (one, three)
    assert plan.segment(Op.READ, 0x21).rules == (three,)


def test_a_rule_for_x2apic_is_refused():
    with pytest.raises(PolicyError, match=r"rule\[0\].*0x800-0x8ff.*-x2apic"):
        compile_policy(Policy([Rule("0x802", read=1)]))


def test_a_range_over_x2apic_is_warned_about():
    plan = compile_policy(Policy([Rule("0x700-0x900", read="fault")]))
    assert any("x2APIC" in warning for warning in plan.warnings)
    compile_policy(Policy([Rule(0x802, read="kernel")]))  # and this is no mistake


def test_what_does_not_fit_is_listed_with_its_rules():
    islands = Policy(
        [Rule([n << 16 for n in range(1, 31)], read="fault")], Defaults(), source="big.toml"
    )
    known = tuple(HandledRange(n << 16, n << 16, True, True) for n in range(1, 31))
    with pytest.raises(FilterCapacityError) as caught:
        compile_policy(islands, KernelFacts(known))
    message = str(caught.value)
    assert message.startswith("big.toml: ")
    assert "0x110000 (rule[0])" in message
    assert "and 2 more" in message
    assert "0x100000 " not in message


@pytest.mark.parametrize("count", [1, 100, 10_000])
def test_many_rules_compile(count):
    rules = [Rule(0xC0010000 + n % 0x2FFF, read=n, write="ignore") for n in range(count)]
    policy = Policy(rules)
    plan = compile_policy(policy)
    assert len(plan.filter.ranges) == 1
    assert plan.segment(Op.READ, 0xC0010000).rules[0].read.value == 0


def test_x2apic_accesses_are_for_the_defaults():
    plan = compile_policy(Policy([Rule("0x700-0x900", read=5)]))
    assert plan.segment(Op.READ, 0x7FF).rules == plan.policy.rules
    assert plan.segment(Op.READ, 0x802).rules == ()
    assert plan.segment(Op.READ, 0x900).rules == plan.policy.rules


def test_the_fast_path_of_tsc_deadline_is_warned_about():
    assert any("0x6e0" in w for w in compile_policy(Policy([Rule(0x6E0, write="ignore")])).warnings)
    assert not compile_policy(Policy([Rule(0x6E0, read="fault", write="kernel")])).warnings


def test_equal_policies_have_equal_tables():
    one, other = (compile_policy(Policy([Rule(0x277, read=5)])) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != compile_policy(Policy([Rule(0x277, read=6)]))
