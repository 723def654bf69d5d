"""Lints: each on what it is for, and not beside it."""

import pytest

from kvmsr.dispatch import MAX_SHADOWS
from kvmsr.policy.file import load_policy
from kvmsr.policy.plan import KernelFacts, LintId, compile_policy
from kvmsr.policy.plan.lint import MAX_SHADOWED
from tests.conftest import ROOT

HEAD = "[policy]\nallow_host_writes = true\n"


def rule(msr, *lines):
    return "\n".join(["[[rule]]", f"msr = {msr}", *lines, ""])


def lints(tmp_path, text, **kernel):
    (tmp_path / "p.toml").write_text(HEAD + text)
    plan = compile_policy(load_policy(tmp_path / "p.toml"), KernelFacts(**kernel))
    return [(str(lint.id), lint.place.line, lint.place.key) for lint in plan.lints]


FAULT = ('read = "fault"',)
ALL_FAULT = rule('"0x10-0x20"', *FAULT)
CONDITION = "when = { vcpu = 0 }"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A rule that can never match.
        (ALL_FAULT + rule(0x18, "read = { value = 1 }"), ("unreachable", "rule[1].read")),
        (
            rule(0x18, *FAULT) + rule(0x19, *FAULT) + rule('"0x18-0x19"', *FAULT),
            ("unreachable", "rule[2].read"),
        ),
        (rule(0x18, *FAULT) + rule('"0x18-0x19"', *FAULT), None),
        (rule(0x18, *FAULT, CONDITION) + rule(0x18, *FAULT), None),
        (rule(0x18, *FAULT) + rule(0x18, 'write = "fault"'), None),
        (rule(0x18, *FAULT, "when = { cpl = 3 }"), ("unreachable", "rule[0].when.cpl")),
        (rule(0x18, *FAULT, "when = { cpl = [0, 3] }"), None),
        # x2APIC.
        (rule('"0x7f0-0x810"', *FAULT), ("x2apic", "rule[0].msr")),
        (rule('"0x7f0-0x7ff"', *FAULT), None),
        (rule("0x810", 'read = "kernel"'), None),
        # The host's values.
        (rule(0x4F, 'read = { host = "same-cpu" }'), ("host-identity", "rule[0].read")),
        (rule(0x8B, "read = { host = 0 }"), ("host-identity", "rule[0].read")),
        (rule(0x19C, "read = { host = 0 }"), ("host-identity", "rule[0].read")),
        (rule(0x1AD, "read = { host = 0 }"), ("host-value", "rule[0].read")),
        (rule(0x1AD, "write = { host = 0 }"), ("host-write", "rule[0].write")),
        (rule(0x4F, "read = { value = 1 }"), None),
        # Writes that are handed back to KVM.
        (rule(0x1A0, 'write = "fault"', CONDITION), ("kernel-write", "rule[0].write")),
        (rule(0x277, 'write = "fault"', CONDITION), None),  # KVM checks the host's value, too
        (rule(0x9E, 'read = "fault"', CONDITION), ("kernel-read", "rule[0].read")),
        (rule(0x277, 'read = "fault"', CONDITION), None),
        (
            rule(0x1A0, 'write = "fault"', CONDITION) + rule(0x1A0, 'write = "kernel"'),
            ("kernel-write", "rule[1].write"),
        ),
        (rule(0x277, 'write = "fault"', CONDITION) + rule(0x277, 'write = "ignore"'), None),
        (rule(0x277, 'write = "kernel"'), None),
        (rule(0x277, 'write = "ignore"', 'when = { reason = "invalid" }'), None),
        (rule(0x5000, 'write = "fault"', CONDITION), None),
        # The timer's fast path.
        (rule(0x6E0, 'write = "ignore"'), ("tsc-deadline", "rule[0].write")),
        (rule(0x6E0, *FAULT), None),
        # What KVM completes is not logged.
        (rule(0x277, 'read = "kernel"', 'log = "always"'), ("not-logged", "rule[0].log")),
        (
            rule(0x277, 'read = "kernel"', 'write = "fault"', 'log = "once"'),
            ("not-logged", "rule[0].log"),
        ),
        (rule(0x277, 'read = "kernel"', 'log = "never"'), None),
        (rule(0x277, 'read = "kernel"', 'write = "fault"'), None),
        (rule(0x277, 'read = "ignore"', 'log = "always"'), None),
        # More shadows than are kept.
        (rule('"0x10000-0x20000"', 'write = "shadow"'), ("shadow-limit", "rule[0].write")),
        (rule('"0x10000-0x1ffff"', 'write = "shadow"'), None),
    ],
)
def test_each_lint(text, expected, tmp_path):
    found = lints(tmp_path, text)
    assert [(id_, key) for id_, _, key in found] == ([expected] if expected else [])
    for _, line, key in found:
        assert (HEAD + text).splitlines()[line - 1].startswith(key.split(".")[1])


def test_a_file_may_override_what_it_extends(tmp_path):
    (tmp_path / "base.toml").write_text(rule(0x18, *FAULT))
    (tmp_path / "p.toml").write_text(
        '[policy]\nextends = ["base.toml"]\n' + rule(0x18, "read = { value = 1 }")
    )
    assert compile_policy(load_policy(tmp_path / "p.toml")).lints == ()


def test_rules_that_wait_for_kvm_where_it_swallows(tmp_path):
    waits = rule(0x277, *FAULT, 'when = { reason = "unknown" }')
    assert ("ignore-msrs", 3, "rule[0]") in lints(tmp_path, waits, ignore_msrs=True)
    kernel = rule(0x277, 'read = "kernel"')
    assert ("ignore-msrs", 3, "rule[0]") in lints(tmp_path, kernel, ignore_msrs=True)
    takes = rule(0x277, *FAULT)
    assert lints(tmp_path, takes, ignore_msrs=True) == [("ignore-msrs", 0, "")]
    assert lints(tmp_path, waits) == []


def test_each_lint_is_explained_in_the_documentation():
    text = (ROOT / "docs/reference/policy.md").read_text()
    for lint in LintId:
        assert f"| `{lint}` |" in text


def test_the_limit_that_a_lint_tells_is_the_dispatchers():
    assert MAX_SHADOWED == MAX_SHADOWS
