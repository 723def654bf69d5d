"""A policy written out is the same policy when it is read again."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from kvmsr.dispatch.models import Register, RegisterModel
from kvmsr.policy import Defaults, Host, Log, Model, Policy, Python, Rule, Topology
from kvmsr.policy.file import parse_policy
from kvmsr.policy.file.parse import load_policy
from kvmsr.policy.file.presets import preset_names
from kvmsr.policy.file.toml import as_json, to_toml
from tests.dispatch.test_language import conditions, kinds

PARAMETERS = {"celsius": 60.0, "maximum": 90, "offset": 0}

numbers = st.integers(0, (1 << 64) - 1)
plain = st.sampled_from(["kernel", "fault", "ignore", "shadow", "stop"])
models = st.sampled_from(
    [
        Model("mce", banks=3, inject=[{"bank": 1, "status": 1 << 63, "after": 0.5}]),
        Model("thermal", celsius=[[0, 40.5], [9, 60.0]]),
        Model("hyperv.crash"),
        Model("smi-count"),
    ]
)
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


@st.composite
def modelled(draw):
    answers = draw(models)
    has = sorted(answers.cls.registers)
    read, write = draw(st.sampled_from([(answers, answers), (answers, None), ("fault", answers)]))
    return Rule(draw(st.lists(st.sampled_from(has), min_size=1)), read, write)


@given(
    st.lists(rules() | modelled(), max_size=4),
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


def test_a_model_for_both_directions_is_written_once():
    rule = Rule("IA32_THERM_STATUS", model=Model("thermal", celsius=60.0, maximum=90))
    lines = to_toml(Policy([rule])).splitlines()
    assert [one for one in lines if "thermal" in one] == [
        'model = { name = "thermal", celsius = 60.0, maximum = 90, offset = 0 }'
    ]
    assert not any(one.startswith(("read", "write")) for one in lines)
    assert 'model = "hyperv.crash"' in to_toml(Policy([Rule("0x40000100", model="hyperv.crash")]))
    (shown,) = as_json(Policy([rule]))["rule"]
    assert shown["read"] == shown["write"] == {"model": "thermal", **PARAMETERS}
    assert "model" not in shown


def test_a_model_is_written_twice_where_once_would_not_do():
    class Named(RegisterModel):
        class Parameters(RegisterModel.Parameters):
            name: str = "it"

        state_ = Register(0x1234)

    for model in (Model("smi-count"), Model.of(Named, "mine:Named", {})):
        index = min(model.cls.registers)
        text = to_toml(Policy([Rule(index, read=model, write=model)]))
        assert [line[:15] for line in text.splitlines() if "model = " in line] == [
            "read = { model ", "write = { model",
        ]  # fmt: skip


def test_json_has_numbers_as_people_write_them_and_places():
    (rule,) = as_json(Policy([Rule(0x277, read=(1 << 64) - 1)]))["rule"]
    assert rule["msr"] == "0x277"
    assert rule["read"] == {"value": "0xffffffffffffffff"}
    assert rule["where"] == "rule[0]"
