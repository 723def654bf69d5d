# SPDX-License-Identifier: Apache-2.0
"""
Policies as TOML and JSON
-------------------------

Writes a policy with everything resolved: the rules that it extends are included, and names are
numbers. Reading it gives the same policy again.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kvmsr.policy.actions import SAME_CPU, Action, Counter, Host, Model, Plain, Python, Value
from kvmsr.policy.policy import EVERY_MSR, Policy, parse_observe
from kvmsr.policy.rule import Rule
from kvmsr.policy.selector import Ranges
from kvmsr.policy.topology import Scope
from kvmsr.text import one_line

__all__ = (
    "action_text",
    "as_json",
    "msr_names",
    "policy_tables",
    "rule_toml",
    "table_toml",
    "to_toml",
)

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_HEX_KEYS: Final = ("value", "mask", "reset", "msr", "observe")
_EVERY: Final = parse_observe(EVERY_MSR)


def policy_tables(policy: Policy) -> dict[str, Any]:
    """
    Return *policy* as the tables of a policy file.

    A model that answers reads and writes is said once, as ``model``.
    """
    header: dict[str, Any] = {"name": policy.name, "description": policy.description}
    if policy.observe:
        header["observe"] = EVERY_MSR if policy.observe == _EVERY else _msrs(policy.observe)
    header["allow_host_writes"] = policy.allow_host_writes
    topology = {
        "threads_per_core": policy.topology.threads_per_core,
        "cores_per_package": policy.topology.cores_per_package,
    }
    defaults = policy.defaults
    return {
        "policy": {key: value for key, value in header.items() if value or key == "observe"},
        "defaults": {
            "unknown": str(defaults.unknown),
            "invalid": str(defaults.invalid),
            "on_error": str(defaults.on_error),
        },
        "topology": {key: value for key, value in topology.items() if value is not None},
        "rule": [_rule(rule) for rule in policy.rules],
    }


def to_toml(policy: Policy) -> str:
    """Return *policy* as a policy file; comments give the MSRs' names, and each rule's origin."""
    tables = policy_tables(policy)
    parts = []
    for name in ("policy", "defaults", "topology"):
        if tables[name]:
            parts.append(table_toml(name, tables[name]))
    for rule in policy.rules:
        names = msr_names(rule)
        comment = one_line(f"# {rule.where}" + (f": {names}" if names else ""))
        parts.append(f"{comment}\n{rule_toml(rule)}")
    return "\n\n".join(parts) + "\n"


def table_toml(name: str, table: Mapping[str, Any]) -> str:
    """Return a table of a policy file, such as ``policy``, as text."""
    return "\n".join([f"[{name}]", *_keys(table)])


def rule_toml(rule: Rule) -> str:
    """Return *rule* as a policy file has it, without a comment."""
    return "\n".join(["[[rule]]", *_keys(_rule(rule))])


def as_json(policy: Policy) -> dict[str, Any]:
    """Return *policy* in its JSON form: its tables, hexadecimal numbers, and each rule's origin."""
    tables = policy_tables(policy)
    for rule, table in zip(policy.rules, tables["rule"], strict=True):
        if table.pop("model", None) and rule.read is not None:  # programs look for directions
            table["read"] = table["write"] = _action(rule.read)
        table.update(where=rule.where, **rule.place.as_dict())
    hexed: dict[str, Any] = _hexed(tables)
    return hexed


def _hexed(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {k: _hexed(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_hexed(item, key) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and key in _HEX_KEYS:
        return f"{value:#x}"
    return value


def action_text(action: Action | None) -> str:
    """Return *action* as a policy file writes it; "" for None."""
    return "" if action is None else _text(_action(action)).strip('"')


def msr_names(rule: Rule, most: int = 4) -> str:
    """Return the names of the first *most* MSRs of *rule* that have one."""
    names: list[str] = []
    for first, last in rule.msrs:
        for index in range(first, min(last, first + 255) + 1):
            name = rule.name_of(index)
            if name and len(names) == most:
                return ", ".join([*names, "…"])
            if name:
                names.append(name)
    return ", ".join(names)


def _rule(rule: Rule) -> dict[str, Any]:
    table: dict[str, Any] = {"msr": _msrs(rule.msrs), **_actions(rule)}
    if rule.reset:
        table["reset"] = rule.reset
    if rule.bits is not None:
        table["bits"] = rule.bits.spec()
    if rule.scope is not Scope.THREAD:
        table["scope"] = str(rule.scope)
    if rule.keep:
        table["keep"] = True
    if rule.when is not None:
        table["when"] = rule.when.spec()
    if rule.log is not None:
        table["log"] = str(rule.log)
    return table


def _actions(rule: Rule) -> dict[str, Any]:
    both = rule.model
    # Of a model that was looked up only, it is not known whether it serves both directions.
    if both is not None and both.cls.registers and len(both.serves) == 2:
        parameters = _parameters(both)
        if "name" not in parameters:
            return {"model": {"name": both.name, **parameters} if parameters else both.name}
    actions = {"read": rule.read, "write": rule.write}
    return {op: _action(action) for op, action in actions.items() if action is not None}


def _msrs(msrs: Ranges) -> int | list[int | str]:
    if len(msrs) == 1 and msrs[0][0] == msrs[0][1]:
        return msrs[0][0]
    return [first if first == last else f"{first:#x}-{last:#x}" for first, last in msrs]


def _action(action: Action) -> Any:
    if isinstance(action, Plain):
        return str(action)
    if isinstance(action, Value):
        return {"value": action.value}
    if isinstance(action, Python):
        return {"python": action.name}
    if isinstance(action, Host):
        return {"host": SAME_CPU if action.cpu is None else action.cpu}
    if isinstance(action, Counter):
        return {"counter": action.hz}
    assert isinstance(action, Model)
    return {"model": action.name, **_parameters(action)}


def _parameters(model: Model) -> dict[str, Any]:
    # By way of JSON, to turn tuples into lists. TOML has no null.
    given = msgspec.json.decode(msgspec.json.encode(model.parameters))
    return {key: value for key, value in given.items() if value is not None}


def _keys(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_text(value, key)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    """Return *text* as a TOML string; what does not print is escaped, even if TOML allows it."""
    quoted = json.dumps(text, ensure_ascii=False)  # JSON's escapes are TOML's
    return "".join(
        char
        if char.isprintable()
        else f"\\u{ord(char):04x}"
        if ord(char) < 1 << 16
        else f"\\U{ord(char):08x}"
        for char in quoted
    )


def _text(value: Any, key: str = "") -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int):
        return f"{value:#x}" if key in _HEX_KEYS else str(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(k)} = {_text(v, k)}" for k, v in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list):
        return f"[{', '.join(_text(item, key) for item in value)}]"
    return str(value)  # floats: TOML writes them as Python does
