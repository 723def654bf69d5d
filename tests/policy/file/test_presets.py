"""The policies that come with kvmsr."""

import pytest

from kvmsr.dispatch import explain
from kvmsr.errors import PolicyError
from kvmsr.policy import Op, Plain
from kvmsr.policy.file import load_policy
from kvmsr.policy.file.presets import preset_names, preset_text
from kvmsr.policy.plan import KernelFacts, compile_policy
from kvmsr.policy.plan.lint import LintId
from tests.conftest import ROOT

NAMES = ["linux", "macos", "power-meter", "quiet", "strict", "watch", "windows"]


def test_these_are_there():
    assert preset_names() == NAMES
    assert preset_text("../presets/quiet") is None
    text = (ROOT / "docs/reference/policy.md").read_text()
    for name in NAMES:
        assert f"| `preset:{name}` |" in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignore_msrs", [False, True])
def test_each_fits_and_has_no_lint_of_its_own(name, ignore_msrs):
    policy = load_policy(f"preset:{name}")
    plan = compile_policy(policy, KernelFacts(ignore_msrs=ignore_msrs))
    assert len(plan.filter.ranges) <= 16
    # Of a host with ignore_msrs there is one lint for the host, and none for the policy.
    assert [lint.id for lint in plan.lints] == [LintId.IGNORE_MSRS] * ignore_msrs
    assert policy.name == name
    assert policy.description
    assert preset_text(name).startswith("# ")


def effect(name, op, index, value=0):
    case = explain(compile_policy(load_policy(f"preset:{name}")), op, index, value=value).cases[0]
    return str(case.effect), case.value


R, W = Op.READ, Op.WRITE


@pytest.mark.parametrize(
    ("name", "op", "index", "value", "expected"),
    [
        ("quiet", R, 0x1C9FF, 0, ("value", 0)),
        ("quiet", W, 0x1C9FF, 5, ("done", None)),
        ("strict", R, 0x1C9FF, 0, ("fault", None)),
        ("strict", R, 0xC1, 0, ("fault", None)),
        ("strict", R, 0x611, 0, ("fault", None)),
        ("strict", R, 0x10, 0, ("kernel", None)),
        ("linux", R, 0xC0010015, 0, ("value", 0x1000000)),
        ("linux", R, 0xE2, 0, ("value", 0x8000)),
        ("linux", W, 0x1B0, 0x10, ("fault", None)),
        ("linux", W, 0x1B0, 0x4, ("done", None)),
        ("windows", R, 0x88, 0, ("value", 0)),
        ("windows", R, 0x150, 0, ("value", 0)),
        ("macos", R, 0x35, 0, ("code", None)),
        ("macos", W, 0xE2, 5, ("done", None)),
    ],
)
def test_what_they_are_for(name, op, index, value, expected):
    assert effect(name, op, index, value) == expected


def test_a_policy_extends_presets(tmp_path):
    (tmp_path / "base.toml").write_text('[[rule]]\nmsr = 0x35\nread = "fault"')
    file = tmp_path / "mine.toml"
    file.write_text(
        '[policy]\nextends = ["preset:quiet", "base.toml"]\n[[rule]]\nmsr = 0x36\nread = "fault"'
    )
    policy = load_policy(file)
    assert policy.defaults.unknown is Plain.IGNORE
    assert [rule.where for rule in policy.rules] == ["mine.toml:3", "base.toml:1"]
    assert load_policy("preset:windows").rules[0].where == "preset:windows:11"
    assert load_policy("preset:windows").rules[0].place.file == "preset:windows"


def test_the_nearest_preset_is_told(tmp_path):
    with pytest.raises(PolicyError, match=r"preset:qiet: there is no preset.*mean 'quiet'"):
        load_policy("preset:qiet")
    file = tmp_path / "p.toml"
    file.write_text('[policy]\nextends = ["preset:qiet"]')
    with pytest.raises(PolicyError, match=r"p\.toml:2: policy\.extends\[0\]: .*mean 'quiet'"):
        load_policy(file)
