"""Explanations run no code of the policy. test_explain_in_guests.py compares them with runs."""

import pytest

from kvmsr.dispatch import Dispatcher, Effect, explain
from kvmsr.dispatch.models import RegisterModel
from kvmsr.errors import PolicyError
from kvmsr.policy import Host, Model, Op, Policy, Rule
from kvmsr.policy.plan import compile_policy
from kvmsr.policy.registers import Register

ran = []


def handler(access):
    ran.append(access)
    return 1


class Loud(RegisterModel):
    register = Register(0x5000)

    def setup(self):
        ran.append(self)
        raise RuntimeError("it was set up")


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize(
    "action", [handler, Model(Loud), Host(0)], ids=["function", "model", "host"]
)
def test_functions_models_and_the_hosts_registers_are_left_alone(op, action):
    rule = Rule(0x5000, **{str(op): action})
    plan = compile_policy(Policy([rule], allow_host_writes=True))
    case = explain(plan, op, 0x5000, value=3).cases[0]
    assert case.effect is Effect.CODE
    assert str(rule.action(op)) in case.text
    assert ran == []
    if isinstance(action, Model):
        with pytest.raises(PolicyError, match="it was set up"):
            Dispatcher(plan)
        ran.clear()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_it_counts_as_the_dispatcher_does(count):
    rules = [Rule(0x5000, read=1, when={"after": 3, "every": 2}), Rule(0x5000, read=0)]
    plan = compile_policy(Policy(rules))
    (first, second) = explain(plan, Op.READ, 0x5000, count=count).cases[:2]
    assert first.value == second.value == (count >= 3 and count % 2)
    expected = "" if first.value else f"it is match number {count} (when {rules[0].when})"
    assert first.steps[0].skipped == expected


def test_where_callers_are_not_known_each_condition_on_them_holds():
    rules = [
        Rule(0x5000, read=1, when={"caller": "0x1000-0x1fff", "vcpu": 1}),
        Rule(0x5000, read=2, when={"caller": "0x3000-0x3fff"}),
        Rule(0x5000, read=3),
    ]
    plan = compile_policy(Policy(rules))
    assert explain(plan, Op.READ, 0x5000).cases[0].value == 2
    case = explain(plan, Op.READ, 0x5000, caller=0x1234).cases[0]
    assert (case.value, case.steps[1].skipped) == (
        3, f"the caller is at 0x1234 (when {rules[1].when})",
    )  # fmt: skip


def test_where_rip_is_not_known_each_condition_on_it_holds():
    rules = [
        Rule(0x5000, read=1, when={"rip": "0x1000-0x1fff", "vcpu": 1}),
        Rule(0x5000, read=2, when={"rip": "0x3000-0x3fff"}),
    ]
    plan = compile_policy(Policy(rules))
    assert explain(plan, Op.READ, 0x5000).cases[0].value == 2
    case = explain(plan, Op.READ, 0x5000, rip=0x1234).cases[0]
    assert case.rule == "defaults.unknown"
    assert [step.skipped.partition(" (")[0] for step in case.steps] == [
        "the vCPU is 0",
        "RIP is 0x1234",
    ]
