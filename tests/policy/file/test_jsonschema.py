"""The JSON schema takes what the reader takes."""

import tomllib

import jsonschema
import pytest

from kvmsr.policy.file import parse_policy
from kvmsr.policy.file.jsonschema import json_schema
from kvmsr.policy.file.presets import preset_names, preset_text
from kvmsr.policy.file.toml import policy_tables
from kvmsr.policy.register_models import BUILT_IN
from tests.conftest import ROOT

EVERYTHING = """
[policy]
name = "all"
extends = ["preset:quiet"]
allow_host_writes = true
[defaults]
unknown = "shadow"
invalid = "stop"
on_error = "ignore"
[topology]
threads_per_core = 2
cores_per_package = 4
[[rule]]
msr = ["IA32_MC*_STATUS", 0x35, "0x10-0x20"]
read = "shadow"
write = { host = "same-cpu" }
reset = 5
bits = { "0" = "lock", "1-2" = "w1c", "*" = "fault" }
scope = "core"
log = "change"
[[rule]]
msr = 1
write = { python = "builtins:print" }
when = { vcpu = [0, 1], cpl = 0, rip = "0x0-0xff", value = 1, mask = 3, after = 1, every = 2 }
[[rule]]
msr = 0x35
read = { model = "topology.core-thread-count" }
when = { reason = ["unknown", "filter"] }
[[rule]]
msr = "IA32_THERM_STATUS"
model = { name = "thermal", celsius = [[0, 40], [60, 70]] }
[[rule]]
msr = "0x40000100-0x40000105"
model = "hyperv.crash"
[[rule]]
msr = 2
read = { host = 3 }
when = { reason = "invalid", vcpu = 3 }
"""

READ_ONLY = {"rapl.amd", "smi-count", "topology.core-thread-count"}

WRONG = [
    "[polcy]",
    "[policy]\nname = 3",
    "[defaults]\nunknown = 'kernel'",
    "[topology]\nthreads_per_core = 0",
    "[[rule]]\nmsr = 1",
    "[[rule]]\nread = 'fault'",
    "[[rule]]\nmsr = 1\nread = 'faultt'",
    "[[rule]]\nmsr = 1\nwrite = { value = 1 }",
    "[[rule]]\nmsr = 1\nread = { value = -1 }",
    "[[rule]]\nmsr = 1\nread = { value = 1, host = 1 }",
    "[[rule]]\nmsr = 1\nread = { model = 'nope' }",
    "[[rule]]\nmsr = 0x35\nread = { model = 'topology.core-thread-count', x = 1 }",
    "[[rule]]\nmsr = 0x19c\nmodel = 'nope'",
    "[[rule]]\nmsr = 0x19c\nmodel = { model = 'thermal' }",
    "[[rule]]\nmsr = 0x19c\nmodel = { name = 'thermal', x = 1 }",
    "[[rule]]\nmsr = 0x19c\nmodel = 'thermal'\nread = 'fault'",
    "[[rule]]\nmsr = 0x19c\nmodel = 'thermal'\nwrite = 'fault'",
    "[[rule]]\nmsr = 0x35\nmodel = 'topology.core-thread-count'",
    "[[rule]]\nmsr = 0x35\nmodel = { name = 'topology.core-thread-count' }",
    "[[rule]]\nmsr = 1\nread = 'shadow'\nbits = { '0' = 'rx' }",
    "[[rule]]\nmsr = 1\nread = 'shadow'\nbits = { 'a' = 'rw' }",
    "[[rule]]\nmsr = 1\nread = 'shadow'\nscope = 'socket'",
    "[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { reason = 'x' }",
    "[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { after = 0 }",
    "[[rule]]\nmsr = 1\nread = 'fault'\nlog = 'sometimes'",
]


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def texts():
    yield EVERYTHING
    yield from (preset_text(name) for name in preset_names())
    yield from (path.read_text() for path in sorted((ROOT / "examples").glob("*.toml")))


@pytest.mark.parametrize("text", list(texts()))
def test_it_takes_what_is_right(validator, text):
    validator.validate(tomllib.loads(text))
    validator.validate(policy_tables(parse_policy(text)))


@pytest.mark.parametrize("text", WRONG)
def test_it_refuses_what_is_wrong(validator, text):
    assert not validator.is_valid(tomllib.loads(text))
    with pytest.raises(Exception, match="policy:"):
        parse_policy(text)


def test_every_key_and_every_model_is_explained():
    schema = json_schema()
    for name, table in schema["$defs"].items():
        for key, form in table.get("properties", {}).items():
            assert form.get("description"), (name, key)
    reads = schema["$defs"]["RuleTable"]["properties"]["read"]["anyOf"]
    models = [
        r["properties"]["model"].get("const") for r in reads if "model" in r.get("required", ())
    ]
    assert set(BUILT_IN) <= set(models)
    both = schema["$defs"]["RuleTable"]["properties"]["model"]["anyOf"]
    assert set(BUILT_IN) - set(both[0]["enum"]) == READ_ONLY
