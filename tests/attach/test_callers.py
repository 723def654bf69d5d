"""Who called the function that accesses an MSR, in the guest of another VMM."""

import json
import subprocess
import sys

import pytest

from kvmsr import native
from kvmsr.attach.processes import is_unconfined
from tests.attach.test_trace import traced
from tests.session.calls import POLICY, A, build, check
from tests.session.test_recording import read

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


@pytest.fixture
def calls(tmp_path):
    return build(tmp_path)


def run(tmp_path, program, image, how="", policy=POLICY, options=("--trace-callers", "8")):
    words = traced(tmp_path, policy, program, image, "0", how, options=options)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    report = json.loads((tmp_path / "summary.json").read_text())
    return report, read(tmp_path / "trace")[1]


@pytest.mark.parametrize("how", ["", "storm", "high"])
def test_what_the_guest_called(tmp_path, vmm, calls, how):
    image, places = calls
    report, rows = run(tmp_path, vmm[0], image, how)
    check(rows, places)
    assert report["notes"] == []


def test_a_vmm_that_would_be_killed_for_it(tmp_path, vmm, calls):
    image, _ = calls
    report, rows = run(tmp_path, vmm[0], image, "confined")
    assert rows["n_callers"].tolist() == [0] * len(rows)
    assert (rows["rip"] != 0).all()
    [note] = report["notes"]
    assert note.startswith("callers are not known: the VMM confines its threads by seccomp")


def test_a_rule_for_one_caller(tmp_path, vmm, calls):
    image, places = calls
    first, last = places["other_way"], places["read_35"] - 1
    policy = f"""
[[rule]]
msr = 0x35
read = {{ value = 7 }}
when = {{ caller = "{first:#x}-{last:#x}" }}
{POLICY}"""
    _, rows = run(tmp_path, vmm[0], image, policy=policy, options=())
    assert rows["value"][rows["index"] == 0x35].tolist() == [1, 7]


def test_a_handler_and_the_log(tmp_path, vmm, calls):
    """A handler in Python sees who called, and so does the log."""
    image, places = calls
    (tmp_path / "own.py").write_text("def answer(access):\n    return access.callers[0]\n")
    policy = f"[[rule]]\nmsr = {A + 3:#x}\nread = {{ python = 'own:answer' }}\nlog = 'always'\n"
    log = tmp_path / "log"
    options = ["--trace-callers", "2", "--log", str(log)]
    _, rows = run(tmp_path, vmm[0], image, policy=policy + POLICY, options=options)
    place = places["after_bare_leaf"]
    assert rows["value"][rows["index"] == A + 3].tolist() == [place]
    assert (
        f" at {int(rows['rip'][rows['index'] == A + 3][0]):#x} ← {place:#x} ← " in log.read_text()
    )


def test_a_thread_that_ends_and_a_process_that_cannot_be_seen():
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\n"
    with subprocess.Popen([sys.executable, "-c", program + "time.sleep(9)"]) as child:
        assert is_unconfined(child.pid)
        child.kill()
    assert not is_unconfined(child.pid)
    assert not is_unconfined(0)
