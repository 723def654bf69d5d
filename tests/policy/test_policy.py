"""Policies as plain values, without a file."""

import dataclasses

import pytest

from kvmsr.errors import PolicyError
from kvmsr.policy import Defaults, Model, Plain, Policy, Python, Rule, Value, on_read, on_write


def test_rules_take_what_reads_well():
    rule = Rule("IA32_PAT", read=5, write="ignore")
    assert rule.read == Value(5)
    assert rule.write is Plain.IGNORE
    assert rule.msrs == ((0x277, 0x277),)
    assert Rule([1, "2", "0x3-4"], read=Value(1)).msrs == ((1, 4),)
    assert Rule(1, write=Plain.STOP).write is Plain.STOP


def test_functions_are_handlers():
    def answer(access):
        return 1

    rule = Rule(0x35, read=answer)
    assert rule.read.function is answer
    assert rule.read.name.endswith("answer")


def test_a_model_may_answer_both_directions():
    once = Rule("IA32_THERM_STATUS", model=Model("thermal", celsius=60.0))
    thermal = Model("thermal", celsius=60.0)
    assert once == Rule("IA32_THERM_STATUS", read=thermal, write=thermal)
    assert once.model == thermal
    assert Rule(0x19C, model="thermal").model == Model("thermal")
    assert Rule(0x19C, read=thermal).model is None
    assert Rule(0x19C, read=thermal, write=Model("thermal")).model is None
    assert Rule(0x19C, read="shadow", write="shadow").model is None


def test_decorators_make_rules():
    @on_read("MSR_CORE_THREAD_COUNT")
    def threads(access):
        return 0x20004

    @on_write([0x1B0, 0x1AD])
    def bias(access):
        pass

    policy = Policy([threads, bias])
    assert isinstance(policy.rules[0].read, Python)
    assert policy.rules[0].write is None
    assert policy.rules[1].msrs == ((0x1AD, 0x1AD), (0x1B0, 0x1B0))
    assert [rule.where for rule in policy.rules] == ["rule[0]", "rule[1]"]


def test_values_are_frozen_and_equal():
    assert Policy([Rule(1, read=2)]) == Policy([Rule(1, read=2)])
    assert hash(Rule(1, read=2)) == hash(Rule(1, read=2))
    for value in (Rule(1, read=2), Defaults(), Policy(), Value(1)):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


@pytest.mark.parametrize(
    ("make", "piece"),
    [
        (lambda: Rule(1), "needs an action"),
        (lambda: Rule(1, read="nope"), "'nope' is not an action"),
        (lambda: Rule(1, read=1 << 64), "64 bits"),
        (lambda: Rule(1, read=-1), "64 bits"),
        (lambda: Rule(1, read=True), "is not an action"),
        (lambda: Rule(1, read=1.5), "is not an action"),
        (lambda: Rule(1, write=5), "can only be read"),
        (lambda: Rule(None, read=1), "selects no MSR"),
        (lambda: Rule([None], read=1), "is not an MSR"),
        (lambda: Rule(1 << 32, read=1), "out of range"),
        (lambda: Rule(1, read="shadow", reset="x"), "is not an integer"),
        (lambda: Defaults(unknown="kernel"), "not an action here"),
        (lambda: Defaults(unknown=5), "is not an action"),
        (lambda: Python("text"), "is not callable"),
        (lambda: Policy(["rule"]), "is not a Rule"),
        (lambda: Rule(0x19C, model="termal"), "did you mean 'thermal'"),
        (lambda: Rule(0x19C, "fault", model="thermal"), "leave out one of the two"),
        (lambda: Rule(0x34, model="smi-count"), "use it as read, with write"),
    ],
)
def test_nonsense_is_refused(make, piece):
    with pytest.raises(PolicyError, match=piece):
        make()


def test_bytes_are_no_list_of_msrs():
    with pytest.raises(PolicyError, match="is not an MSR"):
        Rule(b"\x10\x11", read=1)


def test_where_a_rule_was_written_is_not_what_it_means():
    assert Rule(0x35, read=1, where="a.toml:1") == Rule("0x35", read=1, where="b.toml:9")
    assert Rule(0x35, read=1) != Rule(0x35, read=2)


def test_a_rule_can_be_replaced_in_part():
    rule = Rule("IA32_PAT", read=5, write="shadow", reset=7, where="p.toml:3")
    other = dataclasses.replace(rule, read="fault")
    assert other == Rule(0x277, read="fault", write="shadow", reset=7)
    assert other.where == "p.toml:3"
    assert dataclasses.replace(rule) == rule
    assert dataclasses.replace(rule, msrs=((1, 5), (9, 9))).msrs == ((1, 5), (9, 9))
    assert dataclasses.replace(rule, msr="0x10-0x20").msrs == ((0x10, 0x20),)
    policy = Policy([rule], name="x")
    assert dataclasses.replace(policy, rules=[other]) == Policy([other], name="x")


@pytest.mark.parametrize(
    "msrs", [((5, 1),), ((0, 1 << 32),), (("a", "b"),), ((1, 2, 3),), ((True, 5),)]
)
def test_ranges_are_checked_like_anything_else(msrs):
    with pytest.raises(PolicyError):
        dataclasses.replace(Rule(1, read=2), msrs=msrs)


@pytest.mark.parametrize("msr", [bytearray(b"1"), memoryview(b"1"), [b"1"]])
def test_nor_is_anything_like_bytes(msr):
    with pytest.raises(PolicyError, match="is not an MSR"):
        Rule(msr, read=1)


def test_a_handler_without_a_name_gets_one():
    class Nasty:
        def __call__(self, access):
            return 1

        def __repr__(self):
            raise RuntimeError

    assert "Nasty" in Rule(1, read=Nasty()).read.name
