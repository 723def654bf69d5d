"""kvmsr ctl on kvmsr run: in C, in Python, on the soft backend, and under a supervisor."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from kvmsr import native
from tests.command import call, kvmsr, words_of
from tests.counting import BAD, COUNTING, MSR, SHADOW, status

HANDLER = f'[[rule]]\nmsr = {MSR + 9}\nread = {{ python = "mine:seven" }}\n'
WRONG = f'[[rule]]\nmsr = [{MSR}, {MSR + 1}]\nread = {{ value = 1 }}\nwrite = "ignore"\n'

NAME = f"counting-{os.getpid()}"  # other runs of the tests may be under way


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "counting.bin").write_bytes(COUNTING)
    (tmp_path / "mine.py").write_text("def seven(access): return 7\n")
    (tmp_path / "policy.toml").write_text(SHADOW)
    (tmp_path / "watched.toml").write_text(SHADOW + HANDLER)
    (tmp_path / "wrong.toml").write_text(WRONG)
    (tmp_path / "bad.toml").write_text("[[rule]]\nmsr = 0x1b0\n")
    return tmp_path


@pytest.fixture
def running(folder, backend, start):
    """Return a function that starts the counting guest and waits until it can be controlled."""

    def running(policy="policy.toml", *options):
        words = words_of(
            "run", folder / "counting.bin", "--mode", "16", "--memory", "2M",
            "--backend", backend, "--policy", folder / policy, "--json", *options,
        )  # fmt: skip
        process = start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(300):
            if process.poll() is not None or accesses(process.pid) > 10:
                return process
            time.sleep(0.1)
        raise AssertionError("the guest does not run")

    return running


def accesses(pid):
    found = status(pid)
    return found["accesses"] if found else 0


def goes_on(pid):
    before = accesses(pid)
    for _ in range(100):
        if accesses(pid) > before:
            return True
        time.sleep(0.05)
    return False


def finished(process, status):
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (status, "")
    return json.loads(out)


@pytest.mark.parametrize("policy", ["policy.toml", "watched.toml"])
def test_another_policy_and_back(folder, running, policy):
    process = running(policy)
    pid = process.pid
    done = call("ctl", pid, "policy", folder / "bad.toml")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert f"{folder}/bad.toml:1: rule[0]" in done.stderr
    kvmsr("ctl", pid, "policy", folder / "policy.toml")
    toml, _ = kvmsr("ctl", pid, "show")
    assert toml.startswith(f"# {folder}/policy.toml, in force since 20")
    (folder / "shown.toml").write_text(toml)
    kvmsr("ctl", pid, "policy", folder / "shown.toml")  # it is a policy
    out, _ = kvmsr("ctl", pid, "undo")
    assert out == f"in force again: {folder}/policy.toml\n"
    shown = json.loads(kvmsr("ctl", pid, "show", "--json")[0])
    assert (shown["source"], shown["replacements"]) == (f"{folder}/policy.toml", 3)
    assert shown["policy"]["rule"][0]["read"] == "shadow"
    assert goes_on(pid)
    kvmsr("ctl", pid, "policy", folder / "wrong.toml")
    result = finished(process, BAD << 1 | 1)
    assert result["policy"] == f"{folder}/wrong.toml"
    assert {row["rule"] for row in result["accesses"]} >= {f"{policy}:1", "wrong.toml:1"}


def test_what_runs_is_listed_and_found_by_its_name(folder, running, backend):
    process = running("policy.toml", "--name", NAME)
    listed = json.loads(kvmsr("ctl", "--json")[0])["runs"]
    [own] = [one for one in listed if one["pid"] == process.pid]
    assert (own["name"], own["kind"], own["backend"]) == (NAME, "run", backend)
    assert (own["vms"], own["vcpus"], own["replacements"]) == (1, 1, 0)
    assert backend != "soft" or own["cpu"].startswith(("amd:", "intel:"))  # whose names it prints
    assert own["command"] == f"{folder}/counting.bin"
    table, _ = kvmsr("ctl")
    assert table.split()[:5] == ["PID", "NAME", "BY", "POLICY", "COMMAND"]
    assert re.search(rf"^{process.pid} +{NAME} +run +", table, re.MULTILINE)
    table, _ = kvmsr("ctl", NAME, "status")
    assert f"process   {process.pid}, kvmsr run, since 20" in table
    assert "VMs       1, with 1 vCPU\n" in table
    kvmsr("ctl", NAME, "stop")
    result = finished(process, 6)
    assert (result["exit"]["kind"], result["exit"]["detail"]) == ("stop", "stopped by kvmsr ctl")


def test_two_runs_of_one_name_are_told_apart_by_their_processes(running):
    pids = {running("policy.toml", "--name", f"twin-{NAME}").pid for _ in range(2)}
    done = call("ctl", f"twin-{NAME}", "status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"2 runs have the name twin-{NAME}: use one of" in done.stderr
    assert all(str(pid) in done.stderr for pid in pids)


def test_registers_are_saved_loaded_and_reset(folder, running):
    process = running()
    pid = process.pid
    kvmsr("ctl", pid, "save", folder / "saved")
    [vm] = json.loads((folder / "saved").read_text())["vms"]
    (_, index, one), (_, other, two) = vm["shadows"]["values"]
    assert (index, other) == (MSR, MSR + 1)
    assert 0 <= one - two <= 1
    assert goes_on(pid)
    out, _ = kvmsr("ctl", pid, "summary")
    assert json.loads(out)["exit"]["kind"] == "running"
    kvmsr("ctl", pid, "load", folder / "saved")  # the guest finds old values
    finished(process, BAD << 1 | 1)
    process = running()
    kvmsr("ctl", process.pid, "reset")
    finished(process, BAD << 1 | 1)


def test_a_summary_of_the_supervisor_knows_later_policies(folder, running, backend):
    if backend == "soft" or not native.available():
        pytest.skip("needs the host's KVM and the native core")
    (folder / "mine.py").write_text("import os\ndef seven(access): os._exit(0)\n")
    (folder / "late.toml").write_text(
        f'[[rule]]\nmsr = {MSR + 1}\nread = {{ python = "mine:seven" }}\nwhen = {{ after = 9 }}\n'
        f"{SHADOW}"
    )
    process = running("watched.toml")
    call("ctl", process.pid, "policy", folder / "late.toml")
    result = finished(process, 6)
    assert result["exit"]["detail"] == "a handler ended the process with status 0"
    assert result["policy"] == f"{folder}/late.toml"
    assert "late.toml:5" in {row["rule"] for row in result["accesses"]}


def test_python_that_nobody_watches_over_is_pointed_out(folder, running):
    process = running()
    _, err = kvmsr("ctl", process.pid, "policy", folder / "watched.toml")
    assert "no supervisor watches over this policy's Python" in err
    process.send_signal(signal.SIGTERM)
    finished(process, 130)


def test_a_socket_that_somebody_else_has_taken(folder, backend):
    script = (
        "import os, socket\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(f'\\0kvmsr-{os.getpid()}')\n"
        "s.set_inheritable(True)\n"
        f"os.execv({words_of()[0]!r}, {words_of()!r} + ['run', 'counting.bin', '--mode', '16',"
        f" '--backend', {backend!r}, '--policy', 'policy.toml', '--timeout', '0.3', '--json'])"
    )
    done = subprocess.run(
        [words_of()[0], "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 124, done.stderr
    [note] = json.loads(done.stdout)["notes"][:1]
    assert note == "kvmsr ctl could not reach this run: Address already in use"
