"""--state on kvmsr run, and state files that are not what they should be."""

import json
import signal
import subprocess
import time

import pytest

from kvmsr import native
from tests.command import call, words_of
from tests.conftest import GUESTS
from tests.counting import COUNTING, MSR, SHADOW, status

MODEL = '[[rule]]\nmsr = [0x1a0]\nread = { model = "own:Own" }\nwrite = { model = "own:Own" }\n'
OWN = """
from kvmsr.dispatch.models import Register, RegisterModel

class Own(RegisterModel):
    it = Register(0x1a0)
"""
COUNTS = "[[rule]]\nmsr = 0x1b2\nread = { value = 7 }\nwhen = { after = 3 }\n"
COUNTS += "[[rule]]\nmsr = 0x1b2\nread = { value = 0 }\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "policy.toml").write_text(SHADOW + MODEL + COUNTS)
    (tmp_path / "other.toml").write_text(SHADOW)
    return tmp_path


def run(folder, words, *options, policy="policy.toml", backend="kvm"):
    """Run the guest that accesses MSRs in order; return its lines, and what was left of the run."""
    done = call(
        "run", GUESTS / "list.elf", "--append", words, "--policy", folder / policy,
        "--backend", backend, "--state", folder / "state", "--json", "--serial", folder / "serial",
        *options,
    )  # fmt: skip
    serial = folder / "serial"
    lines = serial.read_text().replace("\r\n", "\n").splitlines() if serial.exists() else []
    return lines, done


def test_registers_models_and_counts_go_on_in_the_next_run(folder, backend):
    before, done = run(folder, "1b0=5 1a0=9 1b2 1b2", backend=backend)
    assert done.returncode == 0, done.stderr
    after, done = run(folder, "1b0 1a0 1b2 1b0=6", backend=backend)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in after[:3]] == [f"{n:#018x}" for n in (5, 9, 7)], before
    again, _ = run(folder, "1b0", backend=backend)
    assert again[0].split()[-1] == f"{6:#018x}"


@pytest.mark.parametrize("how", ["timeout", "SIGINT", "SIGTERM"])
def test_the_state_is_saved_however_the_run_ends(folder, backend, start, how):
    (folder / "counting.bin").write_bytes(COUNTING)
    timeout = ["--timeout", "1"] if how == "timeout" else []
    words = words_of(
        "run", folder / "counting.bin", "--mode", "16", "--policy", folder / "other.toml",
        "--backend", backend, "--state", folder / "state", "--json", *timeout,
    )  # fmt: skip
    process = start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not timeout:
        for _ in range(300):
            found = status(process.pid)
            if found and found["accesses"]:
                break
            time.sleep(0.1)
        process.send_signal(getattr(signal, how))
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (124 if timeout else 130, "")
    [vm] = json.loads((folder / "state").read_text())["vms"]
    assert {index for _, index, _ in vm["shadows"]["values"]} == {MSR, MSR + 1}


@pytest.fixture
def saved(folder):
    """Return a state file that kvmsr has saved."""
    _, done = run(folder, "1b0=5", backend="soft")
    assert done.returncode == 0, done.stderr
    return folder / "state"


def refused(folder, saved, *options, policy="policy.toml"):
    """Check that the state is refused before the guest runs, and is as it was; return the line."""
    before = saved.read_bytes()
    (folder / "serial").unlink(missing_ok=True)
    lines, done = run(folder, "1b0", *options, policy=policy, backend="soft")
    assert done.returncode in (2, 3)
    assert (lines, done.stdout, done.stderr.count("\n")) == ([], "", 1)
    assert str(saved) in done.stderr
    assert saved.read_bytes() == before
    return done.stderr


def test_a_state_that_does_not_fit_the_policy_is_refused(folder, saved):
    line = refused(folder, saved, policy="other.toml")
    assert f"saved under {folder}/policy.toml" in line
    assert "its conditions differ" in line
    (folder / "no-model.toml").write_text(SHADOW + COUNTS.replace("msr", "log = 'never'\nmsr"))
    line = refused(folder, saved, policy="no-model.toml")
    assert "conditions differ" in line or "models that differ: own:Own" in line
    (folder / "own.py").write_text(f"{OWN}\n    def restore(self, state): state['it']\n")
    assert "own:Own {} package 0 cannot be restored: KeyError: 'it'" in refused(folder, saved)


def test_a_state_of_a_larger_machine_is_refused(folder, saved):
    _, done = run(folder, "1b0=5", "--cpus", "2", backend="soft")
    assert done.returncode == 0, done.stderr
    assert "2 vCPUs, and this machine 1: use --cpus 2" in refused(folder, saved)
    state = json.loads(saved.read_text())
    saved.write_text(json.dumps(state | {"vms": state["vms"] * 3}))
    assert "this state has 3 VMs, and this run has one" in refused(folder, saved)


NONSENSE = {
    "empty": (lambda data: b"", "truncated"),
    "truncated": (lambda data: data[: len(data) // 2], "truncated"),
    "foreign": (lambda data: b'{"name": "kvmsr", "version": "0.1"}', "version"),
    "array": (lambda data: b"[1, 2, 3]", "Expected `object`"),
    "binary": (lambda data: bytes(range(256)), "invalid"),
    "deep": (lambda data: b'{"vms": ' + b"[" * 100_000, "not a state"),
    "newer": (lambda data: data.replace(b'"version": 1', b'"version": 2, "new": 1'), "version 2"),
    "huge": (lambda data: data.replace(b"5", b"1" + b"0" * 30, 1), "not a state"),
}


@pytest.mark.parametrize("how", NONSENSE)
def test_a_file_that_is_no_state_is_refused(folder, saved, how):
    change, why = NONSENSE[how]
    saved.write_bytes(change(saved.read_bytes()))
    line = refused(folder, saved)
    assert why in line
    assert "to begin with reset values, move the file away" in line


@pytest.mark.parametrize("how", NONSENSE)
@pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")
@pytest.mark.kvm
def test_nor_by_exec(folder, saved, how):
    change, why = NONSENSE[how]
    saved.write_bytes(change(saved.read_bytes()))
    done = call("exec", "--state", saved, "--", "touch", folder / "it-ran")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert why in done.stderr
    assert not (folder / "it-ran").exists()


def test_a_model_whose_saved_state_is_nonsense(folder, saved):
    state = json.loads(saved.read_text())
    [name] = state["vms"][0]["models"]
    state["vms"][0]["models"][name] = {"values": 3, "written": None}
    saved.write_text(json.dumps(state))
    assert f"the state of the model {name} cannot be restored" in refused(folder, saved)


def test_a_place_for_no_state(folder):
    for file, why in [
        (folder / "missing" / "state", "there is no folder"),
        (folder, "directory"),
        ("/dev/null", "cannot read the state: it is a device"),
    ]:
        done = call("run", GUESTS / "list.elf", "--backend", "soft", "--state", file)
        assert (done.returncode, done.stdout) == (2, "")
        assert why in done.stderr.splitlines()[-1]


def test_a_state_that_cannot_be_saved_is_no_success(folder):
    (folder / "gone").mkdir()
    script = "import os, shutil\ndef vanish(access):\n    shutil.rmtree('gone')\n    return 1\n"
    (folder / "vanish.py").write_text(script)
    (folder / "vanish.toml").write_text(
        '[[rule]]\nmsr = 0x35\nread = { python = "vanish:vanish" }\n'
    )
    done = call(
        "run", GUESTS / "list.elf", "--append", "35", "--policy", "vanish.toml",
        "--backend", "soft", "--state", "gone/state", "--json", "--serial", "serial", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stdout)["totals"]["reads"] >= 1  # the summary is printed all the same
    assert done.stderr.startswith("kvmsr: --state gone/state: the state was not saved:")
    assert done.stderr.count("\n") == 1
    assert not (folder / "gone").exists()


def test_a_supervisor_notes_that_the_state_was_not_saved(folder):
    (folder / "mine.py").write_text("import os\ndef leaves(access): os._exit(0)\n")
    (folder / "leaves.toml").write_text('[[rule]]\nmsr = 0x35\nread = { python = "mine:leaves" }\n')
    _, done = run(folder, "35", policy="leaves.toml", backend="soft")
    assert done.returncode == 6
    assert f"the state was not saved to {folder}/state" in json.loads(done.stdout)["notes"]
    assert not (folder / "state").exists()
