"""``kvmsr exec`` and QEMU: its machines, its sandbox, its daemon, its snapshots."""

import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.qemu import (
    SANDBOX,
    SEEN,
    guest,
    lines,
    monitor,
    multiboot,
    run,
    summary,
    under,
    wait_for_lines,
)
from tests.attach.test_ctl import BAD, SHADOW, Running, counting_bios
from tests.attach.test_exec import wait_for
from tests.conftest import GUESTS

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.peer,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_machines(tmp_path, qemu, machine):
    done, report = run(tmp_path, *guest(qemu, tmp_path, machine=machine))
    assert done.returncode == 0, (report["exit"], done.stderr)
    assert lines(tmp_path) == SEEN
    assert report["totals"]["reads"] >= 6


def test_microvm(tmp_path, qemu, start):
    process = start(under(tmp_path, *guest(qemu, tmp_path, machine="microvm")))
    assert wait_for_lines(tmp_path, len(SEEN), process) == SEEN  # the guest cannot turn it off
    with monitor(tmp_path) as qmp:
        qmp.ask("quit")
    assert process.wait(20) == 0


def test_two_vcpus(tmp_path, qemu):
    """Each writes its APIC ID and a counter to a register of its own, and reads them back."""
    image = tmp_path / "image"
    image.write_bytes(multiboot((GUESTS / "smp.bin").read_bytes()))
    policy = '[[rule]]\nmsr = 0x474f4f00\nread = "shadow"\nwrite = "shadow"\n'
    words = guest(
        qemu, tmp_path, "-smp", "2", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", image=image
    )
    done, report = run(tmp_path, *words, policy=policy)
    assert done.returncode == 1  # a guest that saw something wrong ends it with 3
    assert report["totals"] == {"reads": 2000, "writes": 2000, "faults": 0}


def test_a_sandbox_with_all_its_switches(tmp_path, qemu):
    """The policy has handlers that take 20 ms and more than a second."""
    done, report = run(tmp_path, *guest(qemu, tmp_path, "-sandbox", SANDBOX, "-smp", "2"))
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path) == SEEN
    assert report["notes"] == []


def test_a_daemon(tmp_path, qemu):
    """QEMU's first process ends at once; the policy and the summary are for the daemon's guest."""
    with daemon(tmp_path, qemu) as (process, pidfile):
        assert wait_for_lines(tmp_path, len(SEEN), process) == SEEN
        time.sleep(0.2)
        assert process.poll() is None
        assert not (tmp_path / "summary.json").exists()
        os.kill(int(pidfile.read_text()), signal.SIGTERM)
        assert process.wait(20) == 0
    assert summary(tmp_path)["totals"]["reads"] >= 6


def test_a_daemon_gets_the_signal(tmp_path, qemu):
    with daemon(tmp_path, qemu) as (process, pidfile):
        wait_for_lines(tmp_path, len(SEEN), process)
        process.terminate()
        assert process.wait(20) == 0
        assert not pidfile.exists()  # QEMU has removed it


@contextmanager
def daemon(folder, qemu):
    """Give the process of `kvmsr exec`, whose QEMU goes to the background, and the PID file."""
    pidfile = folder / "pid"
    # QEMU itself does not start with -daemonize and more of -sandbox.
    options = ["-sandbox", "on,obsolete=deny,resourcecontrol=deny", "-no-shutdown"]
    words = guest(qemu, folder, *options, "-daemonize", "-pidfile", pidfile)
    process = subprocess.Popen(under(folder, *words))
    try:
        yield process, pidfile
    finally:
        with suppress(OSError, ValueError):
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
        process.kill()
        process.wait()


REGISTER = "1b0 1b0=55 1b0"
REGISTER_SEEN = SEEN[2:5]


def test_a_reset_finds_registers_as_at_power_on(tmp_path, qemu, start):
    words = guest(qemu, tmp_path, "-no-shutdown", words=REGISTER)
    process = start(under(tmp_path, *words))
    wait_for_lines(tmp_path, 3, process)
    with monitor(tmp_path) as qmp:
        qmp.ask("system_reset")
        qmp.ask("cont")
        assert wait_for_lines(tmp_path, 6, process) == 2 * REGISTER_SEEN
        qmp.ask("quit")
    assert process.wait(20) == 0


# The guest reads an MSR whose handler takes 1.2 s, and then others.
PENDING = "35 36 1b0=77 1b0"
PENDING_SEEN = [SEEN[0], SEEN[8], *(line.replace("55", "77") for line in SEEN[3:5])]


@pytest.fixture
def asked(tmp_path, qemu, start):
    """Return QEMU, whose guest waits for a handler, and its monitor."""
    process = start(under(tmp_path, *guest(qemu, tmp_path, "-no-shutdown", words=PENDING)))
    wait_for(tmp_path / "asked", process)
    with monitor(tmp_path) as qmp:
        yield process, qmp
        process.terminate()
        process.wait(20)


def test_stop_and_cont_while_a_handler_is_asked(tmp_path, asked):
    process, qmp = asked
    begun = time.monotonic()
    for _ in range(3):
        qmp.ask("stop")
        qmp.ask("cont")
    assert time.monotonic() - begun < 1  # QEMU does not wait for the handler
    assert wait_for_lines(tmp_path, 4, process) == PENDING_SEEN
    assert (tmp_path / "asked").read_text() == "x"


def test_a_reset_while_a_handler_is_asked(tmp_path, asked):
    """The answer is not for the guest that starts anew."""
    process, qmp = asked
    qmp.ask("system_reset")
    assert (
        wait_for_lines(tmp_path, 5, process)
        == [
            PENDING_SEEN[0],
            "rdmsr 0x00000036" + PENDING_SEEN[0],  # where it was when it was reset
            *PENDING_SEEN[1:],
        ]
    )


def test_a_snapshot_while_a_handler_is_asked(tmp_path, asked):
    """It is taken before the access, so the guest makes that access again."""
    process, qmp = asked
    qmp.make_disk(tmp_path / "disk")
    snapshot = {"tag": "one", "vmstate": "disk", "devices": ["disk"]}
    qmp.ask("stop")
    qmp.job("snapshot-save", **snapshot)
    qmp.ask("cont")
    assert wait_for_lines(tmp_path, 4, process) == PENDING_SEEN
    qmp.ask("system_reset")  # which QEMU requires of a guest that has turned itself off
    qmp.job("snapshot-load", **snapshot)
    qmp.ask("cont")
    again = " = 0x0000000000000099"  # the snapshot is behind the line's beginning
    assert wait_for_lines(tmp_path, 7, process) == [*PENDING_SEEN, again, *PENDING_SEEN[2:]]


# Migration: to a file and back, by descriptors that QEMU gets, or inherits


def send_file(qmp, path):
    """Give QEMU an open file as the descriptor named "file"."""
    with path.open("wb") as file:
        request = b'{"execute": "getfd", "arguments": {"fdname": "file"}}\n'
        socket.send_fds(qmp.socket, [request], [file.fileno()])
        assert "return" in json.loads(qmp.file.readline())


def migrate(qmp):
    qmp.ask("migrate", uri="fd:file")
    while (status := qmp.ask("query-migrate")["status"]) != "completed":
        assert status in ("setup", "active", "device"), status
        time.sleep(0.05)


@pytest.mark.parametrize("sandbox", [[], ["-sandbox", SANDBOX]], ids=["plain", "sandbox"])
def test_migration_to_a_file_and_back(tmp_path, qemu, sandbox):
    (tmp_path / "policy.toml").write_text(SHADOW)
    image, saved = tmp_path / "image", tmp_path / "saved.json"
    bios = counting_bios(tmp_path)
    with Running(tmp_path, qemu, bios, *sandbox) as vm:
        time.sleep(0.3)
        vm.monitor.ask("stop")
        send_file(vm.monitor, image)
        migrate(vm.monitor)
        vm.ctl("save", saved)
        vm.quit()
    before = summary(tmp_path)["totals"]["reads"]
    assert before > 100
    with image.open("rb") as file:
        incoming = [*sandbox, "-incoming", f"fd:{file.fileno()}"]
        with Running(tmp_path, qemu, bios, *incoming, state=saved, pass_fds=(file.fileno(),)) as vm:
            wait_until_migrated(vm.monitor)
            assert vm.runs_on()  # its registers have the values that it left there
            vm.quit()
    with image.open("rb") as file:
        incoming = [*sandbox, "-incoming", f"fd:{file.fileno()}"]
        with Running(tmp_path, qemu, bios, *incoming, pass_fds=(file.fileno(),)) as vm:
            wait_until_migrated(vm.monitor)
            assert not vm.runs_on()  # its registers were not kept
            assert vm.process.wait(20) == BAD << 1 | 1


def wait_until_migrated(qmp):
    while qmp.ask("query-status")["status"] in ("inmigrate", "postmigrate"):
        time.sleep(0.02)


def test_a_controller_that_can_start_no_more_threads(tmp_path, qemu, start):
    """No access of this policy needs Python, so none needs a thread."""
    policy = "[[rule]]\nmsr = 0x35\nread = { value = 0x20004 }\n"
    words = guest(qemu, tmp_path, "-smp", "24", words="35")
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exec {shlex.join(map(str, words))}"
    process = start(under(tmp_path, "/bin/sh", "-c", script, policy=policy))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        time.sleep(0.05)
    size = 4096 * int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size + (64 << 20), size + (64 << 20)))
    (tmp_path / "go").touch()
    assert wait_for_lines(tmp_path, 1) == SEEN[:1]
    assert process.wait(20) == 0
