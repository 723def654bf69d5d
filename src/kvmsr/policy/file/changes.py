# SPDX-License-Identifier: Apache-2.0
"""
Live changes as a policy file
-----------------------------

Writes a policy to which changes were made while a guest ran as a file that extends the policy's
own. If that one is not there any more, or says something else by now, the new file has all of its
rules.
"""

from pathlib import Path
from typing import Any

from kvmsr.errors import PolicyError
from kvmsr.msr import catalog
from kvmsr.policy.file.lookup import NameLookup
from kvmsr.policy.file.parse import PRESET, parse_policy
from kvmsr.policy.file.toml import rule_toml, table_toml, to_toml
from kvmsr.policy.live import live_rules
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule
from kvmsr.text import one_line

__all__ = ("changes_toml",)


def changes_toml(policy: Policy) -> str:
    """Return *policy* as a policy file, with a comment for each MSR that was changed."""
    base = _base(policy)
    text = _text(policy, base)
    if base and not _says_the_same(text, base, policy):
        about = f"# All rules, because {base} has changed since it was put in force, or is gone."
        return f"{one_line(about)}\n\n{to_toml(policy)}"
    return text if base or not _has_more(policy) else to_toml(policy)


def _base(policy: Policy) -> str:
    """Return what a policy file calls the file of *policy*; "" if it did not come from one."""
    if policy.source.startswith(PRESET):
        return policy.source
    return policy.files[0] if policy.source and policy.files else ""


def _has_more(policy: Policy) -> bool:
    """Return whether *policy* is more than its live rules."""
    return policy != Policy(live_rules(policy))


def _text(policy: Policy, base: str) -> str:
    header: dict[str, Any] = {"extends": [base]} if base else {}
    if policy.allow_host_writes:  # which is not inherited
        header["allow_host_writes"] = True
    parts = [table_toml("policy", header)] if header else []
    before: Rule | None = None
    for rule in live_rules(policy):
        is_next = before is not None and before.msrs == rule.msrs
        parts.append(rule_toml(rule) if is_next else f"{_comment(rule)}\n{rule_toml(rule)}")
        before = rule
    return "\n\n".join(parts) + "\n"


def _comment(rule: Rule) -> str:
    index = rule.msrs[0][0]
    entry = catalog().get(index)
    if entry is None:
        return f"# MSR {index:#x}"
    about = f": {entry.about}" if entry.about else ""
    return one_line(f"# {entry.name} ({index:#x}){about}")


def _says_the_same(text: str, base: str, policy: Policy) -> bool:
    """Return whether *text* is *policy*, as far as that is known without running its Python."""
    try:
        read = parse_policy(text, folder=Path(base).parent, finder=NameLookup())
    except PolicyError:
        return False
    return (
        [_shape(rule) for rule in read.rules] == [_shape(rule) for rule in policy.rules]
        and read.defaults == policy.defaults
        and read.topology == policy.topology
    )


def _shape(rule: Rule) -> tuple[object, ...]:
    return (
        rule.msrs, str(rule.read), str(rule.write), rule.reset, rule.bits, rule.scope, rule.keep,
        rule.when, rule.log,
    )  # fmt: skip
