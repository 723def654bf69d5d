"""What kvmsr's own machine boots, beside QEMU's TCG: each guest gets as far here as there."""

import subprocess
from pathlib import Path

import pytest

from kvmsr.machine.probe import probe
from tests.command import run_guest
from tests.conftest import kvm_missing, peer
from tests.nested.archive import Archive

pytestmark = [pytest.mark.peer, pytest.mark.slow]

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1
"""


@pytest.fixture(params=["soft", "kvm"])
def backend(request):
    """Return the name of each backend that runs ordinary guests."""
    if request.param == "kvm":
        if kvm_missing():
            pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
        if not probe(request.getfixturevalue("host")).ordinary:
            pytest.skip("needs a KVM that runs ordinary guests")
    return request.param


def initrd(folder, script, *files):
    """Write an initial RAM disk with busybox, *files* and a *script* to run; return its path."""
    archive = Archive()
    archive.copy(peer("busybox", "**/busybox"), Path("/bin/busybox"))
    for file in files:
        archive.copy(file)
    archive.add(Path("/init"), (INIT + script).encode(), executable=True)
    (folder / "initrd").write_bytes(archive.finish())
    return folder / "initrd"


def tcg(qemu, *words, timeout=120):
    """Run a guest under QEMU's TCG to its end; return what it sent."""
    command = [
        *qemu, "-nodefaults", "-accel", "tcg", "-m", "512", "-no-reboot", "-display", "none",
        "-serial", "stdio", *map(str, words),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(errors="replace").replace("\r", "")


def last_message(console):
    """Return the last line of a kernel's log, without its time."""
    return console.splitlines()[-1].partition("] ")[2]


def test_linux_turns_the_machine_off(backend, kernel, qemu, tmp_path):
    disk = initrd(tmp_path, "/bin/busybox poweroff -f\n")
    report, console = run_guest(
        tmp_path, kernel, "--memory", "512M", "--initrd", disk, "--timeout", "100",
        "--append", "console=ttyS0", backend=backend,
    )  # fmt: skip
    assert report["exit"]["kind"] == "poweroff"
    assert report["exit"]["code"] == 0
    assert last_message(console) == "reboot: Power down"
    assert "ACPI: PM: (supports S0 S5)" in console
    theirs = tcg(qemu, "-kernel", kernel, "-initrd", disk, "-append", "console=ttyS0")
    assert last_message(theirs) == last_message(console)
