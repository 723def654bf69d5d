"""
``kvmsr exec --backend soft``: unmodified programs whose /dev/kvm is the soft backend.

What they say of it, they say of the host's KVM, too.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsr import native
from kvmsr.attach.soft import find_python
from kvmsr.errors import BackendError
from tests.attach.selftests import programs
from tests.command import words_of
from tests.conftest import GUESTS, PEERS, ROOT, kvm_missing, need, peer

SECONDS = 120
CONSTANT = "[[rule]]\nmsr = 0x35\nread = { value = 0x1200 }\n"
COUNT = 2000


def why_not_soft():
    try:
        find_python()
    except BackendError as error:
        return str(error)
    return native.why_not()


pytestmark = [pytest.mark.skipif(bool(why_not_soft()), reason=f"needs {why_not_soft()}")]


def command(folder, *vmm, policy=CONSTANT, backend="soft", options=()):
    (folder / "policy.toml").write_text(policy)
    return words_of(
        "exec", "--backend", backend, "--policy", folder / "policy.toml", *options,
        "--json", "--summary", folder / "summary.json", "--", *vmm,
    )  # fmt: skip


def run(folder, *vmm, **options):
    done = subprocess.run(
        command(folder, *vmm, **options), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    summary = folder / "summary.json"
    return done, json.loads(summary.read_text()) if summary.exists() else None


# The policy


def test_the_policy_decides_what_the_guest_sees(tmp_path, vmm):
    done, report = run(tmp_path, *vmm, COUNT)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (7, str(0x1200), "")
    assert (report["backend"], report["exit"]["kind"]) == ("soft", "vmm")
    [row] = report["accesses"]
    assert (row["index"], row["count"], row["last_value"]) == ("0x35", COUNT, "0x1200")
    assert (report["notes"], report["losses"]) == ([], [])


def test_without_a_rule_the_profile_decides(tmp_path, vmm):
    """Nothing but MSR 0x35 is accessed, which kvm_amd does not know."""
    done, report = run(tmp_path, *vmm, 1, policy="", options=["--soft-profile", "linux-6.1-amd"])
    assert (done.returncode, done.stderr) == (1, "vmm: exit 8\n")  # the guest has no #GP handler
    assert report["accesses"][0]["outcome"] == "#GP"
    done, report = run(
        tmp_path, *vmm, 1, policy="", options=["--soft-profile", "linux-6.1-amd,ignore_msrs"]
    )
    assert (done.returncode, done.stdout.split()[0], report["accesses"]) == (7, "0", [])


def test_a_trace_shows_what_came_of_it(tmp_path, vmm):
    trace = tmp_path / "t.arrows"
    run(tmp_path, *vmm, 3, options=["--trace", trace])
    shown = subprocess.run(
        words_of("trace", "show", trace, "--json"), capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["value"] for row in rows] == ["0x1200"] * 3
    assert rows[0]["rip"] == "0x7c15"


PYTHON = '[[rule]]\nmsr = 0x35\nread = { python = "counting:up" }\n'
UP = "count = 0\n\ndef up(access):\n    global count\n    count += 1\n    return count << 8\n"


@pytest.mark.parametrize("storm", [[], ["storm"]], ids=["calm", "storm"])
def test_a_handler_is_asked_once_for_each_access(tmp_path, vmm, storm):
    (tmp_path / "counting.py").write_text(UP)
    done, report = run(tmp_path, *vmm, COUNT, *storm, policy=PYTHON)
    eax, kicks = map(int, done.stdout.split())
    assert (eax, report["totals"]["reads"]) == (COUNT << 8, COUNT)
    assert not storm or kicks > 10


@pytest.mark.parametrize("how", ["high", "moved", "fork", "deny", "watch"])
def test_no_descriptor_and_no_filter_escapes(tmp_path, vmm, how):
    done, report = run(tmp_path, *vmm, COUNT, how)
    assert (done.returncode, done.stderr) == (7, "")
    assert (done.stdout.split()[0], report["totals"]["reads"]) == (str(0x1200), COUNT)


# Processes


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    program = tmp_path_factory.mktemp("life") / "life"
    source = ROOT / "tests/attach/life.c"
    subprocess.run([need("cc"), "-O2", "-pthread", "-o", program, source], check=True)
    return program


SAID = {
    "alarm": "handled 1, exit 10, soon\n",
    "halted": "handled 1, exit 10, soon\n",
    "kicks": "handled 300, each ended a KVM_RUN\n",
    "immediate": "then 0x1200\n",
    "mask": "handled 0, eaten 1, then 0x1200\nhandled 0, then 0x1200, handled 1\n",
    "ignored": "handled 1, at its time\n",
    "cancel": "cancelled, then 0x1200\n",
    "busy": "waited\n",
    "threads": "1200 reads, sum 0x546000\n",
    "fork": "child: 3 of 3, own 0x1200\n" * 5 + "parent: 0x1200\n",
    "opens": "0 descriptors more, little memory\n",
    "orders": "0x1200 0x1200 closed 0x1200\n",
    "device": "10:232 character same access 0 -1 cloexec 0\n12\n",
}


@pytest.mark.parametrize("what", SAID)
@pytest.mark.parametrize("backend", ["soft", "kvm"])
def test_processes_and_signals(tmp_path, life, backend, what):
    if backend == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    done, report = run(tmp_path, life, what, backend=backend)
    assert (done.stdout, done.returncode) == (SAID[what], 0)
    assert report["backend"] == backend


def test_a_vmm_that_crashes(tmp_path, life):
    done, report = run(tmp_path, life, "crash")
    assert done.returncode == 128 + signal.SIGSEGV
    assert report["totals"]["reads"] == 1
    assert report["exit"]["detail"].endswith("was ended by SIGSEGV")


def test_a_vmm_that_is_stopped(tmp_path, vmm):
    stop = '[[rule]]\nmsr = 0x35\nread = "stop"\n'
    done, report = run(tmp_path, *vmm, COUNT, policy=stop)
    assert (done.returncode, report["exit"]["kind"]) == (6, "stop")


# Python


def python_vmm(folder, python):
    done, report = run(folder, python, ROOT / "tests/attach/python_vmm.py", "a", "b")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['a', 'b'] 0x1200 0x1200 0x1200",
        "thread 0x1200",
        "KVM_RUN -1 Interrupted system call 1 soon",
        "child Input/output error 0x1200",
        "parent 0x1200",
    ]
    assert (done.returncode, report["totals"]["reads"]) == (0, 6)


def test_a_vmm_that_is_a_python(tmp_path):
    python_vmm(tmp_path, sys.executable)


def test_a_vmm_that_is_kvmsr(tmp_path, guest_of_kvmsr):
    done, report = run(tmp_path, *guest_of_kvmsr)
    assert (done.returncode, report["totals"]["reads"]) == (0, 0)  # its own policy is above
    assert json.loads(done.stdout)["totals"]["reads"] == 100


@pytest.fixture
def guest_of_kvmsr(tmp_path):
    image = tmp_path / "loop.bin"
    data = bytearray((GUESTS / "loop.bin").read_bytes())
    data[4:8] = (100).to_bytes(4, "little")
    image.write_bytes(data)
    (tmp_path / "own.toml").write_text(CONSTANT)
    return words_of(
        "run", image, "--mode", "16", "--backend", "kvm", "--json", "--policy",
        tmp_path / "own.toml", "--memory", "2M",
    )  # fmt: skip
