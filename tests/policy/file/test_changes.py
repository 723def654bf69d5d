"""Live changes as a policy file: what it says, and that reading it gives the same policy."""

import pytest

from kvmsr.policy import Policy
from kvmsr.policy.file import load_policy
from kvmsr.policy.file.changes import changes_toml
from kvmsr.policy.file.toml import policy_tables
from kvmsr.policy.live import changed
from tests.command import kvmsr

MINE = """\
[policy]
allow_host_writes = true
[defaults]
unknown = "ignore"
[[rule]]
msr = "0x600-0x640"
read = { python = "mine:seven" }
write = { host = "same-cpu" }
[[rule]]
msr = "IA32_PAT"
read = "shadow"
write = "shadow"
bits = { "0-2" = "ro" }
when = { after = 3 }
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text("def seven(access): return 7\n")
    (tmp_path / "mine.toml").write_text(MINE)
    return load_policy(tmp_path / "mine.toml")


def with_changes(policy):
    policy = changed(policy, 0x1B0, read=5, write="ignore", log="always")
    policy = changed(policy, 0x611, log="change")
    policy = changed(policy, 0x12345678, write="fault")
    return changed(policy, 0x277, log="once")


def same_rules(one, other):
    return all(
        policy_tables(one)[part] == policy_tables(other)[part]
        for part in ("defaults", "topology", "rule")
    )


@pytest.mark.parametrize("source", ["mine", "preset:strict", ""])
def test_it_is_the_policy_that_was_in_force(tmp_path, mine, source):
    policy = {"mine": mine, "": Policy()}.get(source) or load_policy(source)
    policy = with_changes(policy)
    text = changes_toml(policy)
    (tmp_path / "new.toml").write_text(text)
    assert same_rules(load_policy(tmp_path / "new.toml"), policy)
    kvmsr("policy", "check", tmp_path / "new.toml")
    assert ("extends" in text) == bool(source)
    assert "# IA32_ENERGY_PERF_BIAS (0x1b0)" in text
    assert "# MSR 0x12345678\n[[rule]]" in text


def test_it_can_be_read_by_a_person(mine):
    assert changes_toml(changed(mine, 0x1B0, read=5, write="ignore")) == (
        f"""\
[policy]
extends = ["{mine.source}"]
allow_host_writes = true

# IA32_ENERGY_PERF_BIAS (0x1b0): A hint to prefer performance or to save energy.
[[rule]]
msr = 0x1b0
read = {{ value = 0x5 }}
write = "ignore"
"""
    )


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_is_not_the_same_any_more_is_not_extended(tmp_path, mine, gone):
    policy = with_changes(mine)
    (tmp_path / "mine.toml").unlink() if gone else (tmp_path / "mine.toml").write_text("")
    text = changes_toml(policy)
    assert text.startswith(f"# All rules, because {tmp_path}/mine.toml has changed")
    (tmp_path / "new.toml").write_text(text)
    assert same_rules(load_policy(tmp_path / "new.toml"), policy)
