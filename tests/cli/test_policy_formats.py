"""kvmsr policy import and export."""

import json

from tests.command import kvmsr


def test_a_file_becomes_a_policy_that_checks(tmp_path):
    (tmp_path / "list").write_text('0x00000199 0x000000000000ffff # "IA32_PERF_CTL"\n')
    out, err = kvmsr("policy", "import", tmp_path / "list")
    assert "msr-safe: 1 statement, 1 rule" in err
    assert "IA32_PERF_CTL" in err
    (tmp_path / "mine.toml").write_text(out)
    assert "1 rule," in kvmsr("policy", "check", tmp_path / "mine.toml")[0]
    report, _ = kvmsr("policy", "import", tmp_path / "list", "--json")
    assert json.loads(report)["statements"][0]["index"] == "0x199"
    back, _ = kvmsr("policy", "export", tmp_path / "mine.toml", "--format", "msr-safe")
    assert back == "0x00000199 0x000000000000ffff\n"


def test_a_log_comes_through_a_pipe(tmp_path):
    with (tmp_path / "log").open("w+") as log:
        log.write("kvm: vcpu0 unhandled rdmsr: 0x1c9\n")
        log.seek(0)
        out, _ = kvmsr("policy", "import", "-", "-o", tmp_path / "x.toml", stdin=log)
    assert out == ""
    assert "msr = 0x1c9" in (tmp_path / "x.toml").read_text()


def test_what_cannot_be_said_is_reported(tmp_path):
    (tmp_path / "x.toml").write_text('[[rule]]\nmsr = 1\nread = "stop"\n')
    _, err = kvmsr("policy", "export", tmp_path / "x.toml", "--format", "bochs", status=1)
    assert err == "kvmsr: bochs cannot express the rule x.toml:1\n"
    _, err = kvmsr("policy", "import", tmp_path / "none", status=3)
    assert err.startswith(f"kvmsr: {tmp_path / 'none'}: cannot read the file: No such file")
