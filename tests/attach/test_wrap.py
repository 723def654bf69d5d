"""`kvmsr wrap`: a script that takes the place of a VMM."""

import json
import os
import subprocess

import pytest

from kvmsr import native
from tests.attach.test_exec import CONSTANT, COUNT
from tests.command import call

pytestmark = pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")


def wrap(*words):
    return call("wrap", *words)


@pytest.mark.kvm
def test_the_script_runs_the_vmm_under_the_policy(tmp_path, vmm):
    (tmp_path / "the policy.toml").write_text(CONSTANT)
    program, image = vmm
    script, summary = tmp_path / "wrapped", tmp_path / "msrs.json"
    done = wrap(
        program,
        "-o",
        script,
        "--policy",
        tmp_path / "the policy.toml",
        "--json",
        "--summary",
        summary,
    )
    assert (done.returncode, done.stderr) == (0, "")
    run = subprocess.run(
        [script, image, str(COUNT)], capture_output=True, text=True, check=False,
        cwd="/", env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (7, "")
    assert run.stdout.split()[0] == str(0x1200)
    assert json.loads(summary.read_text())["accesses"][0]["count"] == COUNT


def test_questions_about_the_vmm_are_its_own_to_answer(tmp_path):
    script = tmp_path / "wrapped"
    assert wrap("/bin/echo", "-o", script).returncode == 0
    said = subprocess.run(
        [script, "-S", "-machine", "none,accel=kvm:tcg"], capture_output=True, text=True, check=True
    )
    assert (said.stdout, said.stderr) == ("-S -machine none,accel=kvm:tcg\n", "")
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["no-such-vmm", "-o", "x"], "no-such-vmm: no such program"),
        (["/bin/echo", "-o", "/no/such/x"], "-o /no/such/x: cannot be written"),
        (["/bin/echo", "-o", "x", "--policy", "preset:nil"], "nil"),
    ],
)
def test_what_cannot_be_wrapped_is_reported_in_one_line(words, why):
    done = wrap(*words)
    assert done.returncode in (2, 3)
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
