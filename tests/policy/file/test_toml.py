"""A policy written out is the same policy when it is read again."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from kvmsr.policy import Defaults, Host, Log, Model, Policy, Python, Rule, Topology
from kvmsr.policy.file import parse_policy
from kvmsr.policy.file.parse import load_policy
from kvmsr.policy.file.presets import preset_names
from kvmsr.policy.file.toml import as_json, to_toml
from tests.dispatch.test_language import conditions, kinds

numbers = st.integers(0, (1 << 64) - 1)
plain = st.sampled_from(["kernel", "fault", "ignore", "shadow", "stop"])
code = st.sampled_from([Host(), Host(3), Python(len, "builtins:len")])


@st.composite
def rules(draw):
    spans = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), min_size=1)
    read = draw(st.none() | plain | code | numbers)
    write = draw((plain | code) if read is None else (st.none() | plain | code))
    extra = {}
    if "shadow" in (read, write):
        extra["reset"] = draw(st.none() | numbers)
        extra["bits"] = draw(st.none() | st.dictionaries(st.sampled_from("0123"), kinds))
        extra["scope"] = draw(st.sampled_from(["thread", "core", "package", "vm"]))
    return Rule(
        [tuple(span) for span in draw(spans)],
        read,
        write,
        when=draw(st.none() | conditions(writes=read is None)),
        log=draw(st.none() | st.sampled_from([str(log) for log in Log])),
        **extra,
    )


@given(
    st.lists(rules(), max_size=4),
    st.builds(Defaults, st.sampled_from(["fault", "shadow"]), st.just("stop"), st.just("ignore")),
    st.builds(Topology, st.integers(1, 9), st.none() | st.integers(1, 9)),
    st.text(max_size=9),
)
def test_a_policy_survives_being_written(rules, defaults, topology, name):
    policy = Policy(rules, defaults, topology=topology, allow_host_writes=True, name=name)
    again = parse_policy(to_toml(policy))
    assert again.rules == policy.rules
    assert (again.defaults, again.topology, again.name) == (defaults, topology, name)
    as_json(policy)


def test_models_and_what_is_extended_are_written_out():
    for name in preset_names():
        policy = load_policy(f"preset:{name}")
        text = to_toml(policy)
        assert parse_policy(text).rules == policy.rules
        assert "extends" not in tomllib.loads(text).get("policy", {})
    rule = Rule(0x35, read=Model("topology.core-thread-count"))
    assert parse_policy(to_toml(Policy([rule]))).rules == (rule,)


def test_json_has_numbers_as_people_write_them_and_places():
    (rule,) = as_json(Policy([Rule(0x277, read=(1 << 64) - 1)]))["rule"]
    assert rule["msr"] == "0x277"
    assert rule["read"] == {"value": "0xffffffffffffffff"}
    assert rule["where"] == "rule[0]"
