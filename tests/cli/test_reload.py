"""--reload and SIGHUP: on kvmsr run and exec, with and without a supervisor."""

import json
import os
import pty
import signal
import subprocess
import time

import pytest

from kvmsr import native
from kvmsr.policy.file import load_policy, parse_policy
from kvmsr.policy.file.lookup import NameLookup
from tests.command import call, words_of
from tests.conftest import kvm_missing
from tests.counting import BAD, COUNTING, MSR, SHADOW, status

BASE = '[policy]\nextends = ["base.toml"]\n'
WATCHED = f'[[rule]]\nmsr = {MSR + 9}\nread = {{ python = "mine:seven" }}\n'
WRONG = f'[[rule]]\nmsr = [{MSR}, {MSR + 1}]\nread = {{ value = 1 }}\nwrite = "ignore"\n'


@pytest.fixture(params=["policy.toml", "watched.toml"])
def policy(tmp_path, request):
    """Return a policy without Python, and one with, which a supervisor watches over."""
    (tmp_path / "counting.bin").write_bytes(COUNTING)
    (tmp_path / "base.toml").write_text(SHADOW)
    (tmp_path / "policy.toml").write_text(BASE)
    (tmp_path / "mine.py").write_text("def seven(access): return 7\n")
    (tmp_path / "watched.toml").write_text(BASE + WATCHED)
    return tmp_path / request.param


@pytest.fixture(params=["kvm", "soft", "exec"])
def running(request, policy, start):
    """Return a function that starts the counting guest; it waits until there are accesses."""
    if request.param != "soft" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    options = ["--policy", policy, "--json"]
    words = [
        "run", policy.parent / "counting.bin", "--mode", "16", "--memory", "2M",
        "--backend", request.param, *options,
    ]  # fmt: skip
    if request.param == "exec":
        if not native.available():
            pytest.skip(f"needs {native.why_not()}")
        request.getfixturevalue("qemu")
        bios = bytearray(b"\xf4" * 65536)
        bios[: len(COUNTING)] = COUNTING
        bios[0xFFF0:0xFFF3] = b"\xe9\x0d\x00"  # jmp 0
        (policy.parent / "bios.bin").write_bytes(bios)
        words = ["exec", *options]

    def running(*more):
        whole = [*words, *more]
        if request.param == "exec":
            whole += [
                "--", *request.getfixturevalue("qemu"), "-accel", "kvm", "-m", "16",
                "-bios", policy.parent / "bios.bin", "-display", "none", "-nodefaults",
                "-no-reboot", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
            ]  # fmt: skip
        process = start(words_of(*whole), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        waits_for(process, lambda now: now["accesses"] > 10)
        return process

    return running


def ours(err):
    """Return kvmsr's lines: QEMU has some of its own to say."""
    return [line for line in err.splitlines() if line.startswith("kvmsr: ")]


def waits_for(process, condition):
    for _ in range(200):
        found = status(process.pid)
        if found and condition(found):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError((process.poll(), found))


def test_files_are_watched(policy, running):
    process = running("--reload")
    (policy.parent / "base.toml").write_text("[[rule]\n")
    time.sleep(2)
    (policy.parent / "base.toml").write_text(f"{SHADOW}log = 'never'\n")
    waits_for(process, lambda now: now["replacements"] == 1)
    if policy.name == "watched.toml":
        (policy.parent / "mine.py").write_text("def seven(access): return 8\n")
        waits_for(process, lambda now: now["replacements"] == 2)
    (policy.parent / "base.toml").write_text(WRONG)
    out, err = process.communicate(timeout=30)
    assert process.returncode == BAD << 1 | 1
    assert "base.toml:1" in {row["rule"] for row in json.loads(out)["accesses"]}
    first, *others = ours(err)
    assert first.startswith(f"kvmsr: the policy was not reloaded: {policy.parent}/base.toml:1:")
    assert set(others) == {f"kvmsr: reloaded {policy}"}


def test_sighup_reloads(policy, running):
    process = running("--reload")
    process.send_signal(signal.SIGHUP)
    waits_for(process, lambda now: now["replacements"] == 1)
    waits_for(process, lambda now: now["accesses"] > 10)
    policy.write_text("nonsense")
    process.send_signal(signal.SIGHUP)
    time.sleep(2)
    waits_for(process, lambda now: now["replacements"] == 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    reloaded, line = ours(err)
    assert reloaded == f"kvmsr: reloaded {policy}"
    assert line.startswith(f"kvmsr: the policy was not reloaded: {policy}:1: invalid TOML")


def test_without_reload_sighup_ends_the_run(running):
    process = running()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=30)
    result = json.loads(out)
    if result["image"].endswith("counting.bin"):
        assert (process.returncode, result["exit"]["kind"]) == (130, "stop")
    else:  # QEMU ends by itself
        assert result["exit"]["kind"] == "vmm"


def test_another_policy_of_ctl_is_watched_from_then_on(policy, running):
    process = running("--reload")
    other = policy.parent / "other.toml"
    other.write_text(SHADOW)
    call("ctl", process.pid, "policy", other)
    waits_for(process, lambda now: now["policy"] == str(other))
    time.sleep(1.5)
    other.write_text(f"{SHADOW}log = 'never'\n")
    waits_for(process, lambda now: now["replacements"] == 2)


@pytest.mark.parametrize("policy", ["policy.toml"], indirect=True)
def test_a_terminal_that_is_closed_ends_the_run(policy):
    pid, terminal = pty.fork()
    if not pid:
        words = words_of(
            "run", policy.parent / "counting.bin", "--mode", "16", "--memory", "2M",
            "--backend", "soft", "--policy", policy, "--reload",
        )  # fmt: skip
        os.execv(words[0], words)
    for _ in range(200):
        found = status(pid)
        if found and found["accesses"]:
            break
        time.sleep(0.1)
    os.close(terminal)
    try:
        for _ in range(100):
            found, _status = os.waitpid(pid, os.WNOHANG)
            if found:
                return
            time.sleep(0.1)
        raise AssertionError("it runs on")
    finally:
        if not found:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_the_files_of_a_policy_are_known(tmp_path):
    (tmp_path / "base.toml").write_text(WATCHED)
    (tmp_path / "mine.py").write_text("def seven(access): return 7\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("from .inside import eight\n")
    (tmp_path / "package/inside.py").write_text("def eight(access): return 8\n")
    (tmp_path / "policy.toml").write_text(
        '[policy]\nextends = ["preset:quiet", "base.toml"]\n'
        '[[rule]]\nmsr = 0x1b3\nread = { python = "package:eight" }\n'
    )
    names = ["policy.toml", "base.toml", "mine.py", "package/__init__.py", "package/inside.py"]
    found = load_policy(tmp_path / "policy.toml").files
    assert set(found) == {str(tmp_path / name) for name in names}
    unrun = load_policy(tmp_path / "policy.toml", finder=NameLookup()).files
    assert set(unrun) == {str(tmp_path / name) for name in names[:4]}
    assert parse_policy(SHADOW).files == ()
    assert load_policy("preset:quiet").files == ()
