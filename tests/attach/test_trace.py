"""Traces of other VMMs' guests."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest

from kvmsr import native
from kvmsr.trace.file import LATENCY, OUTCOMES
from tests.attach.test_exec import CONSTANT, COUNT, PYTHON, command
from tests.session.test_recording import read

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


def traced(tmp_path, policy, *vmm, options=()):
    words = command(tmp_path, policy, *vmm)
    at = words.index("--json")
    return [*words[:at], "--trace", str(tmp_path / "trace"), *options, *words[at:]]


@pytest.mark.parametrize("policy", [CONSTANT, PYTHON], ids=["table", "handler"])
def test_each_access_of_the_guest(tmp_path, vmm, policy):
    done = subprocess.run(
        traced(tmp_path, policy, *vmm, COUNT), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")
    report = json.loads((tmp_path / "summary.json").read_text())
    trace, rows = read(tmp_path / "trace")
    assert trace.cut == ""
    assert (trace.head.command, trace.head.backend) == ("exec", "kvm")
    assert str(vmm[0]) in trace.head.image
    wanted = [0x1200] * COUNT if policy is CONSTANT else [n << 8 for n in range(1, COUNT + 1)]
    assert rows["value"].tolist() == wanted
    assert set(rows["index"].tolist()) == {0x35}
    assert (rows["outcome"] == OUTCOMES.index("value")).all()
    assert set(rows["pid"].tolist()) == {vm["pid"] for vm in report["vms"]}
    assert (np.diff(rows["guest_ns"].astype(np.int64)) >= 0).all()


def test_what_rules_want_logged_is_logged(tmp_path, vmm):
    policy = CONSTANT + 'log = "always"\n'
    words = traced(tmp_path, policy, *vmm, 50, options=["--log", str(tmp_path / "log")])
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7
    assert len((tmp_path / "log").read_text().splitlines()) == 50
    _, rows = read(tmp_path / "trace")
    assert len(rows) == 50


@pytest.mark.parametrize("whom", ["controller", "vmm"])
def test_kill_9_loses_the_last_second_at_most(tmp_path, vmm, start, whom):
    """Of the controller and of the VMM alike: what was recorded until then is in the file."""
    words = traced(tmp_path, CONSTANT, *vmm, 1 << 30)
    process = start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "trace"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 1 << 20):
        time.sleep(0.05)
    time.sleep(0.6)
    [child] = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
    killed = time.time()
    if whom == "vmm":
        subprocess.run(["kill", "-9", child], check=True)
        process.wait(20)
    else:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    trace, rows = read(path)
    assert bool(trace.cut) == (whom == "controller")
    last = int(rows["time_ns"][rows["has"] & LATENCY != 0][-1]) / 1e9
    assert killed - 1 < last < killed + 1
