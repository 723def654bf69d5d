# SPDX-License-Identifier: Apache-2.0
"""
JSON schema
-----------

The JSON schema of policy files, for editors: which keys there are, and what they mean.
"""

from typing import Any, Final

import msgspec

from kvmsr.policy.access import Reason
from kvmsr.policy.actions import SAME_CPU, Model, Plain
from kvmsr.policy.bits import BitKind
from kvmsr.policy.file.schema import ActionTable, File
from kvmsr.policy.policy import ON_ERROR, ON_UNKNOWN
from kvmsr.policy.register_models import BUILT_IN, find_model
from kvmsr.policy.rule import Log
from kvmsr.policy.topology import Scope
from kvmsr.policy.when import WhenTable

__all__ = ("json_schema",)

_U64: Final = {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}
_USERS: Final = {
    "type": "string",
    "pattern": ":",
    "description": "your own model, as module:Class",
}
_MSR: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
        {"type": "string", "description": "a name, a pattern, 0x35, or 0x600-0x63f"},
    ]
}

# What each key means, and its schema where that is narrower than its type.
_SAYS: Final[dict[str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "HeaderTable": {
        "name": ("the name of the policy", {}),
        "description": ("what the policy is for", {}),
        "symbols": (
            "where the functions of the guest's kernel are: a vmlinux, a System.map, or a copy of"
            " /proc/kallsyms",
            {},
        ),
        "extends": ("policies to build on: files or preset:NAME; later ones win", {}),
        "observe": (
            'MSRs to see even if no rule takes them from KVM; "all" for all that KVM handles',
            {"anyOf": [*_MSR["anyOf"], {"type": "array", "items": _MSR}]},
        ),
        "allow_host_writes": ("whether host is allowed as an action for writes", {}),
    },
    "DefaultsTable": {
        "unknown": ("for MSRs that KVM does not know", {"enum": [*map(str, ON_UNKNOWN)]}),
        "invalid": ("for values and modes that KVM rejects", {"enum": [*map(str, ON_UNKNOWN)]}),
        "on_error": ("for accesses whose handler fails", {"enum": [*map(str, ON_ERROR)]}),
    },
    "TopologyTable": {
        "threads_per_core": ("vCPUs per core", {"type": "integer", "minimum": 1}),
        "cores_per_package": ("cores per package", {"type": "integer", "minimum": 1}),
    },
    "RuleTable": {
        "msr": ("the MSRs", {"anyOf": [*_MSR["anyOf"], {"type": "array", "items": _MSR}]}),
        "model": ("the register model that answers both reads and writes", {}),
        "reset": ("the initial value of a shadow register or a counter", _U64),
        "bits": (
            'how each bit of a shadow register behaves: "0", "1-2", or "*" for all others',
            {
                "type": "object",
                "additionalProperties": {"enum": [*map(str, BitKind)]},
                "propertyNames": {"pattern": r"^(\*|\d{1,2}(\s*-\s*\d{1,2})?)$"},
            },
        ),
        "scope": ("which vCPUs share the register", {"enum": [*map(str, Scope)]}),
        "keep": ("whether the registers survive a reset of the guest", {}),
        "when": ("the condition under which the rule holds", {"$ref": "#/$defs/WhenTable"}),
        "log": ("which accesses are logged", {"enum": [*map(str, Log)]}),
    },
    "WhenTable": {
        "vcpu": ("the vCPUs", {}),
        "cpl": ("the privilege levels", {}),
        "rip": ('the address of the instruction: "0x1000-0x1fff", or its function', {}),
        "caller": ("a function, or its addresses, that has the instruction or called it", {}),
        "value": ("the value written, compared under mask", _U64),
        "mask": ("the bits of the value to compare", _U64),
        "after": ("the first match for which the rule holds", {"type": "integer", "minimum": 1}),
        "every": ("hold for every Nth match", {"type": "integer", "minimum": 1}),
        "reason": ("why KVM handed the access over", {}),
    },
}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a policy file."""
    _, defs = msgspec.json.schema_components([File, WhenTable], ref_template="#/$defs/{name}")
    for name, keys in _SAYS.items():
        properties = defs[name]["properties"]
        for key, (description, form) in keys.items():
            properties[key] = {**(form or _plain(properties[key])), "description": description}
    reasons = {"enum": [*map(str, Reason)]}
    defs["WhenTable"]["properties"]["reason"]["anyOf"] = [
        reasons,
        {"type": "array", "items": reasons, "minItems": 1},
    ]
    rule = defs["RuleTable"]["properties"]
    for op in ("read", "write"):
        rule[op] = {"description": f"what happens to a {op}", "anyOf": _actions(op)}
    rule["model"]["anyOf"] = _models()
    defs["RuleTable"]["anyOf"] = [
        {"required": ["read"], "properties": {"model": False}},
        {"required": ["write"], "properties": {"model": False}},
        {"required": ["model"], "properties": {"read": False, "write": False}},
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **defs.pop("File"),
        "title": "kvmsr policy",
        "$defs": defs,
    }


def _plain(form: dict[str, Any]) -> dict[str, Any]:
    """Return the schema *form* without null, which TOML does not have."""
    form = {key: value for key, value in form.items() if key != "default"}
    kinds = [kind for kind in form.pop("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        return {**form, **kinds[0]}
    return {**form, "anyOf": kinds} if kinds else form


def _actions(op: str) -> list[dict[str, Any]]:
    host = {"anyOf": [{"const": SAME_CPU}, {"type": "integer", "minimum": 0}]}
    forms: dict[str, dict[str, Any]] = {
        "value": {"value": _U64},
        "python": {"python": {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:\w+$"}},
        "host": {"host": host},
        "counter": {"counter": {"type": "integer", "minimum": 1, "maximum": 10**12}},
    }
    assert {*forms, "model"} == set(ActionTable.__struct_fields__)
    tables = [
        {"type": "object", "properties": form, "required": [key], "additionalProperties": False}
        for key, form in forms.items()
        if not (key == "value" and op == "write")
    ]
    tables += [_model("model", name) for name in BUILT_IN]
    tables.append({"type": "object", "properties": {"model": _USERS}, "required": ["model"]})
    return [{"enum": [*map(str, Plain)]}, *tables]


def _models() -> list[dict[str, Any]]:
    """Return the forms of the models that serve both directions."""
    names = [name for name in BUILT_IN if len(Model(name).serves) == 2]
    return [
        {"enum": names},
        _USERS,
        *(_model("name", name) for name in names),
        {"type": "object", "properties": {"name": _USERS}, "required": ["name"]},
    ]


def _model(key: str, name: str) -> dict[str, Any]:
    """Return the form of a table with the parameters of model *name*, which is in *key*."""
    model = find_model(name)
    _, parts = msgspec.json.schema_components([model.Parameters])
    own = parts[model.Parameters.__name__]
    return {
        "type": "object",
        "description": " ".join((model.__doc__ or "").split("\n\n")[0].split()),
        "properties": {key: {"const": name}, **own["properties"]},
        "required": [key],
        "additionalProperties": False,
    }
