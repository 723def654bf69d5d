"""kvmsr policy, as its users meet it."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmsr.cli import cli
from kvmsr.cli._parameters import MsrIndex
from kvmsr.cli.policy import command
from kvmsr.errors import UsageError
from kvmsr.policy.file import load_policy
from kvmsr.session import load_state
from tests.cli.test_cli import LIST
from tests.command import kvmsr

POLICY = """\
[[rule]]
msr = "IA32_PAT"
read = { value = 6 }
write = "ignore"
when = { vcpu = 1 }

[[rule]]
msr = ["IA32_PAT", 0x35]
read = "fault"
write = "shadow"
bits = { "0-7" = "rw", "*" = "fault" }
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(POLICY)
    return path


def in_process(*words, status=0):
    """Run a command here: quicker than a process of its own."""
    result = CliRunner().invoke(cli, list(map(str, words)), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    assert (result.return_value or 0) == status, result.output
    return result.output


@pytest.mark.parametrize("name", ["check", "show", "explain", "filter", "schema", "presets"])
def test_each_has_help_with_an_example_and_json(name):
    result = CliRunner().invoke(command, [name, "--help"])
    assert "Example: kvmsr policy" in result.output
    assert "--json" in result.output


def test_check_tells_errors_and_lints_with_file_line_and_key(file, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[[rule]]\nmsr = 1\nraed = 'fault'")
    odd = tmp_path / "odd.toml"
    odd.write_text('[[rule]]\nmsr = 0x6e0\n\nwrite = "ignore"')
    out, _ = kvmsr("policy", "check", file, bad, odd, "--no-ignore-msrs", status=3)
    lines = out.splitlines()
    assert lines[0] == f"{file}: 2 rules, 1 of KVM's 16 filter ranges, 0 lints"
    assert lines[1] == f"error: {bad}:3: rule[0].raed: unknown key; did you mean 'read'? [invalid]"
    assert lines[2].startswith(f"lint: {odd}:4: rule[0].write: on some hosts, KVM completes")
    assert lines[2].endswith("[tsc-deadline]")
    told = json.loads(in_process("policy", "check", bad, odd, "--json", status=3))
    assert told["ok"] is False
    assert told["policies"][0]["error"]["key"] == "rule[0].raed"
    assert told["policies"][1]["lints"][0]["id"] == "tsc-deadline"
    in_process("policy", "check", odd)
    in_process("policy", "check", odd, "--strict", status=3)


def test_check_reports_everything_that_is_wrong(tmp_path):
    bad, base = tmp_path / "bad.toml", tmp_path / "base.toml"
    bad.write_text(
        '[policy]\nextends = ["base.toml"]\n[[rule]]\nmsr = 0x800\nread = "fault"\n'
        '[[rule]]\nmsr = 1\nraed = "fault"\nwrite = { host = 0 }\n'
        '[[rule]]\nmsr = 2\nread = "x"\nwrite = { host = 0 }\n[[rule]]\nmsr = 3\nread = "stop"\n'
        "write = { host = 0 }\n"
    )
    base.write_text('[defaults]\nunknown = "x"\n[[rule]]\nmsr = 0x801\nread = "stop"\n')
    lines = in_process("policy", "check", bad, status=3).splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["error", f"{bad}:4", "rule[0].msr"],
        ["error", f"{bad}:8", "rule[1].raed"],
        ["error", f"{bad}:12", "rule[2].read"],
        ["error", f"{bad}:17", "rule[3].write"],
        ["error", f"{base}:2", "defaults.unknown"],
        ["error", f"{base}:4", "rule[0].msr"],
    ]
    told = json.loads(in_process("policy", "check", bad, "--json", status=3))["policies"][0]
    assert told["error"] == told["errors"][0]
    assert [f"error: {one['text']} [{one['id']}]" for one in told["errors"]] == lines


LOUD = "print('this was run')\ndef read(access): return 1 / 0\n"


@pytest.mark.parametrize(
    "words",
    [["check"], ["show"], ["show", "--json"], ["filter"], ["explain", "0x35", "--policy"]],
)
def test_python_is_looked_up_and_not_run_unless_that_is_asked_for(tmp_path, words):
    (tmp_path / "mine.py").write_text(LOUD)
    (tmp_path / "p.toml").write_text('[[rule]]\nmsr = 0x35\nread = { python = "mine:read" }\n')
    out, err = kvmsr("policy", *words, tmp_path / "p.toml")
    note = f"mine:read in {tmp_path / 'mine.py'} was looked up, not run (--import runs it)\n"
    assert "this was run" not in out + err
    assert (out if words == ["check"] else err).count(note) == 1
    if "--json" in words:
        json.loads(out)
    out, err = kvmsr("policy", *words, tmp_path / "p.toml", "--import")
    assert "this was run" in out
    assert "looked up" not in out + err
    (tmp_path / "mine.py").write_text(LOUD.replace("read", "raed"))
    out, err = kvmsr("policy", *words, tmp_path / "p.toml", status=3)
    assert "p.toml:3: rule[0].read: module 'mine' has no function 'read': nothing in" in out + err


def test_a_fifo_or_a_device_is_no_policy(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for words in (["check"], ["show"], ["import"]):
        for name, kind in ((tmp_path / "fifo", "a FIFO"), ("/dev/zero", "a device")):
            out, err = kvmsr("policy", *words, name, status=3)
            assert f"{name}: " in out + err
            assert f"it is {kind}, not a regular file" in out + err


def test_a_fifo_or_a_device_is_no_image_and_no_state(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, kind in ((tmp_path / "fifo", "a FIFO"), ("/dev/zero", "a device")):
        for words in ([name], ["--bios", name], [LIST, "--initrd", name], [name, "--mode", 16]):
            _, err = kvmsr("run", "--backend", "soft", *words, status=3)
            assert err.startswith("kvmsr: cannot read ")
            assert f"{name}: it is {kind}, not a regular file" in err
        with pytest.raises(UsageError, match=f"cannot read the state: it is {kind}, not a regular"):
            load_state(Path(name))


def test_check_and_a_run_name_the_same_lines(tmp_path):
    file = tmp_path / "p.toml"
    file.write_text('[[rule]]\nmsr = 0x6e0\n\nwrite = "ignore"\n')
    lints = in_process("policy", "check", file, "--no-ignore-msrs").splitlines()[:-1]
    told, _ = kvmsr("run", "--backend", "soft", LIST, "--policy", file, "--json", "--serial", "-")
    notes = json.loads(told)["notes"]
    assert [line.removeprefix("lint: ") for line in lints] == [n for n in notes if "[tsc" in n]
    assert lints[0].startswith(f"lint: {file}:4: rule[0].write: on some hosts, KVM completes")


def test_check_and_explain_tell_what_guests_look_at_first():
    out = in_process("policy", "check", "preset:linux", "--strict", "--no-ignore-msrs")
    assert (
        "note: preset:linux: guests look for some of these MSRs only where CPUID shows epb" in out
    )
    out = in_process("policy", "explain", "0x1b0", "--policy", "preset:linux")
    assert "  CPUID:   guests look here only where CPUID shows epb (CPUID.06H:ECX[3], Intel)" in out
    told = json.loads(in_process("policy", "explain", "0x35", "--json"))
    assert told["cpuid"] == []


def test_check_tells_what_does_not_fit(tmp_path):
    file = tmp_path / "wide.toml"
    # Islands to be denied, each beside one that must not be.
    islands = [
        f'[[rule]]\nmsr = {(n << 16) + k:#x}\nread = "fault"\nwhen = {{ reason = "{reason}" }}'
        for n in range(1, 40)
        for k, reason in enumerate(("filter", "unknown"))
    ]
    file.write_text("\n".join(islands))
    told = json.loads(in_process("policy", "check", file, "--json", status=3))
    error = told["policies"][0]["error"]
    assert error["id"] == "too-many-ranges"
    assert "needs more than KVM's 16 filter ranges" in error["text"]
    assert " 0x110000 (wide.toml:129); " in error["text"]


def test_show_resolves(file, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('[policy]\nextends = ["preset:quiet", "p.toml"]')
    table, _ = kvmsr("policy", "show", mine)
    assert "0x277 IA32_PAT" in table
    assert "unknown = ignore" in table
    text = in_process("policy", "show", mine, "--toml")
    (tmp_path / "again.toml").write_text(text)
    assert load_policy(tmp_path / "again.toml").rules == load_policy(mine).rules
    assert tomllib.loads(text)["defaults"]["unknown"] == "ignore"
    told = json.loads(in_process("policy", "show", mine, "--json"))
    assert told["rule"][0]["msr"] == "0x277"
    assert told["rule"][0]["line"] == 1


def test_explain_tells_rule_filter_kernel_and_guest(file):
    out, _ = kvmsr("policy", "explain", "IA32_PAT", "--policy", file, "--write", "0x106")
    assert out.splitlines() == [
        "write of 0x106 to MSR 0x277 (IA32_PAT) on vCPU 0",
        "  KVM:     some KVMs handle writes; others hand them over as unknown or invalid."
        " Keeps it, and refuses undefined types on mainline",
        "  filter:  range 0 (0x277-0x277), bit 0 is 0: denied",
        "  comes to user space (filter): the guest sees #GP(0): reserved bits 0x100 would change",
        "    p.toml:1 write = ignore: skipped: the vCPU is 0 (when vcpu = [1])",
        "    p.toml:7 write = shadow: decides",
    ]
    words = ["policy", "explain", "0x277", "--policy", file, "--vcpu", 1, "--json"]
    told = json.loads(in_process(*words))
    assert told["filter"]["denied"] is True
    case = told["cases"][0]
    assert (case["effect"], case["value"], case["reason"]) == ("value", "0x6", "filter")
    assert case["steps"][0]["line"] == 1


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (["0x802"], "never filtered"),
        (["0x35"], "no KVM handles reads"),
        (["0x10"], "if KVM completes it: the guest sees KVM's answer"),
        (["5", "--cpl", "3"], "from KVM itself, as the CPL is 3"),
        (["0x35", "--ignore-msrs"], "would swallow them"),
    ],
)
def test_explain_knows_what_kvm_does(words, piece):
    assert piece in in_process("policy", "explain", *words)


MSRS = ("IA32_PAT", "0x35", "0x1b0", "0xc0010015", "0xe2", "0x3a", "0x4b564d04", "0x150")


@pytest.mark.parametrize("profile", ["linux-6.18-amd", "linux-6.1-intel", "pvm"])
@pytest.mark.parametrize("switch", ["", ",ignore_msrs"])
def test_explain_knows_what_a_soft_profile_does(profile, switch):
    profile += switch
    append = " ".join(f"{MsrIndex().convert(name, None, None):x}" for name in MSRS)
    words = ["run", LIST, "--backend", "soft", "--soft-profile", profile, "--append", append]
    told, _ = kvmsr(*words, "--json", "--serial", "/dev/null")
    reasons = {row["index"]: row["reason"] for row in json.loads(told)["accesses"]}
    for name in MSRS:
        out = in_process("policy", "explain", name, "--soft-profile", profile, "--json")
        explained = json.loads(out)
        assert explained["kernel"].startswith(
            (f"{profile} (soft): handles", f"{profile} (soft): does not")
        )
        handed_over = [case["reason"] for case in explained["cases"]]
        reason = reasons.get(explained["index"])
        assert reason in handed_over
        assert handed_over[0] == reason or reason == "invalid"


def test_filter_shows_what_kvm_gets(file):
    out = in_process("policy", "filter", file)
    assert "range 0: 0x277-0x277, reads and writes: denies 1 of 1 MSRs" in out
    told = json.loads(in_process("policy", "filter", file, "--json"))
    (one,) = told["ranges"]
    assert (one["base"], one["nmsrs"], one["flags"], one["bitmap"][:2]) == ("0x277", 1, 3, "00")


def test_schema_and_presets():
    assert json.loads(in_process("policy", "schema"))["title"] == "kvmsr policy"
    assert "preset:quiet: " in in_process("policy", "presets")
    assert in_process("policy", "presets", "quiet").startswith("# What kvm.ignore_msrs=1 does")
    names = [p["name"] for p in json.loads(in_process("policy", "presets", "--json"))["presets"]]
    assert names == ["linux", "macos", "power-meter", "quiet", "strict", "watch", "windows"]


@pytest.mark.parametrize(
    ("words", "status", "piece"),
    [
        (["explain", "IA32_PATT"], 2, "did you mean IA32_PAT"),
        (["explain", "0x100000000"], 2, "out of range"),
        (["explain", "1", "--write", "x"], 2, "is not a number"),
        (["explain", "1", "--vcpu", "-1"], 2, "vcpu"),
        (["explain", "1", "--count", "0"], 2, "count"),
        (["explain", "1", "--soft-profile", "linus"], 2, "no soft profile is called 'linus'"),
        (["explain", "1", "--soft-profile", "pvm", "--ignore-msrs"], 2, "NAME,ignore_msrs=1"),
        (["explain", "1", "--policy", "nope.toml"], 3, "cannot read the policy"),
        (["show", "preset:qiet"], 3, "did you mean 'quiet'"),
        (["presets", "qiet"], 3, "did you mean 'quiet'"),
        (["filter", "/"], 3, "cannot read the policy"),
    ],
)
def test_what_is_wrong_is_one_line(words, status, piece):
    _, err = kvmsr("policy", *words, status=status)
    assert piece in err


def test_completion_knows_presets_and_names():
    from click.shell_completion import ShellComplete

    def complete(words, incomplete):
        found = ShellComplete(cli, {}, "kvmsr", "_X").get_completions(words, incomplete)
        return [item.value for item in found]

    assert complete(["policy"], "expl") == ["explain"]
    assert "preset:quiet" in complete(["policy", "show"], "preset:q")
    assert "IA32_PAT" in complete(["policy", "explain"], "ia32_pa")
    assert complete(["run", "--observe"], "al") == ["all"]
    assert "0x10,IA32_PAT" in complete(["exec", "--observe"], "0x10,ia32_pa")
    assert complete(["policy", "presets"], "w") == ["watch", "windows"]


def test_accesses_are_reported_on_standard_error_or_in_a_file(tmp_path):
    log = tmp_path / "log"
    words = ["run", LIST, "--append", "35 35", "--policy", "preset:quiet"]
    _, err = kvmsr(*words)
    line = "vCPU 0: read of MSR 0x35 (MSR_CORE_THREAD_COUNT): 0x0 (defaults.unknown; unknown)"
    assert err == f"kvmsr: {line}\n"
    _, err = kvmsr(*words, "--log", log)
    assert (err, log.read_text()) == ("", f"{line}\n")
    _, err = kvmsr(*words, "--log", "/nope/log", status=2)
    assert err == "kvmsr: --log /nope/log: cannot be written: No such file or directory\n"
    out, err = kvmsr(*words, "--log", "/dev/full")  # the run goes on, and says so
    assert "the log failed, later accesses are not in it: --log /dev/full: No space left" in out
