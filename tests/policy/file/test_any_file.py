"""Whatever stands in a file, it is a policy or one clear line."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmsr.dispatch import explain
from kvmsr.errors import PolicyError
from kvmsr.policy import Op
from kvmsr.policy.file import parse_policy
from kvmsr.policy.file.toml import to_toml
from kvmsr.policy.plan import compile_policy

words = st.sampled_from(
    "kernel fault ignore shadow stop rw lock rc once never change core vm same-cpu filter unknown"
    " IA32_PAT IA32_MC*_CTL 0x10-0x20 0-0xffffffff 0x800 0-63 5 * [ - os:path os:PathLike"
    " topology.core-thread-count preset:quiet".split()
) | st.text(max_size=5)
scalars = words | st.integers(-2, 70) | st.integers() | st.booleans() | st.floats(allow_nan=False)
keys = st.sampled_from(
    "msr read write reset bits scope when log value python host model vcpu cpl rip mask after every"
    " reason 0 1-2 * x".split()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
# Mostly of the right form, so that what is behind it is reached as well.
actions = words | st.dictionaries(
    st.sampled_from(["value", "python", "host", "model"]), scalars, min_size=1, max_size=2
)
conditions = st.dictionaries(
    st.sampled_from("vcpu cpl rip value mask after every reason".split()), scalars, max_size=3
)
rules = st.fixed_dictionaries(
    {"msr": scalars | st.lists(scalars, max_size=3)},
    optional={
        "read": actions | values,
        "write": actions | values,
        "reset": scalars,
        "bits": st.dictionaries(words, words, max_size=3) | values,
        "scope": words,
        "when": conditions | values,
        "log": words,
    },
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.dictionaries(
            st.sampled_from(["name", "description", "extends", "allow_host_writes"]),
            values | st.lists(words, max_size=2),
        ),
        "defaults": st.dictionaries(st.sampled_from(["unknown", "invalid", "on_error"]), words),
        "topology": st.dictionaries(
            st.sampled_from(["threads_per_core", "cores_per_package"]), st.integers(-1, 9)
        ),
        "rule": st.lists(rules, max_size=3) | values,
    },
)


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return str(value) if "e" in str(value) or "." in str(value) else f"{value}.0"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


@given(policies)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_tree_is_a_policy_or_one_line(tree):
    text = "\n".join(f"{key} = {toml(value)}" for key, value in tree.items())
    try:
        policy = parse_policy(text)
        plan = compile_policy(policy)
    except PolicyError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2000
        return
    assert parse_policy(to_toml(policy)).rules == policy.rules
    for lint in plan.lints:
        assert str(lint).isprintable()
    for op in Op:
        for rule in policy.rules:
            explain(plan, op, rule.msrs[0][0]).as_dict()
