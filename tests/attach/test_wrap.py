"""`kvmsr wrap`: a script that takes the place of a VMM."""

import json
import subprocess

import pytest

from kvmsr import native
from tests.attach.test_exec import CONSTANT, COUNT
from tests.command import call

pytestmark = pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")

SHADOW = '[[rule]]\nmsr = 0x35\nread = "shadow"\nwrite = "shadow"\nreset = 0x300\n'


def wrap(*words):
    return call("wrap", *words)


def run(script, *words, **options):
    return subprocess.run(
        [script, *map(str, words)], capture_output=True, text=True, check=False, cwd="/",
        env={"PATH": "/usr/bin:/bin"}, **options,
    )  # fmt: skip


@pytest.mark.kvm
def test_the_script_runs_the_vmm_under_the_policy(tmp_path, vmm):
    (tmp_path / "the policy.toml").write_text(CONSTANT)
    program, image = vmm
    script, summary = tmp_path / "wrapped", tmp_path / "msrs.json"
    done = wrap(
        program, "-o", script, "--policy", tmp_path / "the policy.toml", "--json",
        "--summary", summary,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    ended = run(script, image, COUNT)
    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout.split()[0] == str(0x1200)
    assert json.loads(summary.read_text())["accesses"][0]["count"] == COUNT


@pytest.mark.kvm
def test_the_script_records_and_observes(tmp_path, vmm):
    (tmp_path / "policy.toml").write_text(CONSTANT)
    program, image = vmm
    script, trace = tmp_path / "wrapped", tmp_path / "a trace"
    done = wrap(
        program, "-o", script, "--policy", tmp_path / "policy.toml", "--observe", "IA32_PAT,0x200",
        "--trace", trace, "--trace-callers", 2, "--trace-grade", "once",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert run(script, image, COUNT).returncode == 7
    (read,) = json.loads(call("trace", "summary", "--json", trace).stdout)["traces"]
    assert (read["grade"], read["totals"]["reads"], read["events"]) == ("once", COUNT, 2)
    assert "--observe 0x200-0x200,0x277-0x277" in script.read_text()
    refused = wrap(program, "-o", script, "--trace-rip")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_queries_are_the_vmms_own_to_answer(tmp_path):
    script, summary = tmp_path / "wrapped", tmp_path / "summary"
    assert wrap("/bin/echo", "-o", script, "--summary", summary).returncode == 0
    for words in (
        "-S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg -qmp unix:x"
        " -pidfile y -daemonize",  # libvirt asks for the capabilities
        "-M none",
        "-machine help",
        "-cpu help",
        "--version",
    ):
        said = run(script, *words.split())
        expected = run("/bin/echo", *words.split())
        assert (said.stdout, said.stderr) == (expected.stdout, "")
    assert not summary.exists()


@pytest.mark.kvm
def test_all_else_is_under_the_policy(tmp_path):
    script, summary = tmp_path / "wrapped", tmp_path / "summary"
    assert wrap("/bin/echo", "-o", script, "--summary", summary).returncode == 0
    for words in ("-daemonize", "-machine q35 -append -machine", "-name help -machine pc"):
        assert run(script, *words.split()).stdout == f"{words}\n"
        assert "created no VM" in summary.read_text()
        summary.unlink()


@pytest.mark.kvm
def test_a_guest_that_starts_anew_has_its_registers_as_at_power_on(tmp_path, vmm):
    """One that libvirt restores, with -incoming, has those that were saved."""
    (tmp_path / "policy.toml").write_text(SHADOW)
    state, script = tmp_path / "the state", tmp_path / "wrapped"
    (tmp_path / "vmm").write_text(f'#!/bin/sh\nexec {vmm[0]} {vmm[1]} "$1"\n')
    (tmp_path / "vmm").chmod(0o755)
    words = [tmp_path / "vmm", "-o", script, "--policy", tmp_path / "policy.toml"]
    assert wrap(*words, "--state", state).returncode == 0

    assert run(script, 1).stdout.split()[0] == str(0x300)
    saved = json.loads(state.read_text())
    saved["vms"][0]["shadows"]["values"] = [[0, 0x35, 0x7700]]
    for option, value in (("-incoming", 0x7700), ("-name", 0x300)):
        state.write_text(json.dumps(saved))
        assert run(script, 1, option, "defer").stdout.split()[0] == str(value)


@pytest.mark.kvm
def test_the_folder_in_which_it_is_started_has_no_say(tmp_path):
    script = tmp_path / "wrapped"
    assert wrap("/bin/echo", "-o", script).returncode == 0
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run([script, "x"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "x\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["no-such-vmm", "-o", "x"], "no-such-vmm: no such program"),
        (["/bin/echo", "-o", "/no/such/x"], "-o /no/such/x: cannot be written"),
        (["/bin/echo", "-o", "/tmp"], "-o /tmp: cannot be written"),
        (["/bin/echo", "-o", "/bin/echo"], "-o /bin/echo: this is the VMM itself"),
        (["/bin/echo", "-o", "x", "--policy", "preset:nil"], "nil"),
        (["/bin/echo", "-o", "x", "--summary", "/no/such/y"], "there is no folder /no/such"),
        (["/bin/echo", "-o", "x", "--state", "/no/such/y"], "there is no folder /no/such"),
    ],
)
def test_what_cannot_be_wrapped_is_reported_in_one_line(tmp_path, words, why):
    done = call("wrap", *words, cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
