"""
``kvmsr exec`` with VMMs that are not QEMU, or that start it.

No package of Debian's has them. kvmtool is built from its source, and KVMSR_KVMTOOL names the
program (lkvm); ``vng`` of virtme-ng, from the Python package index, is looked for in PATH.
"""

import os
import shlex
import subprocess

import pytest

from kvmsr import native
from tests.attach.qemu import LIST, SEEN, WORDS, summary, under
from tests.conftest import ROOT, need

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

IN_REAL_MODE = [line for line in SEEN if "0xc0000080" not in line]


def run(folder, *vmm):
    """Run a VMM under the policy, with the log in a file; return what the guest printed."""
    done = subprocess.run(
        under(folder, *vmm, options=["--log", folder / "log"]), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(("rdmsr", "wrmsr"))]
    assert lines, done.stdout
    return done.returncode, lines


@pytest.fixture
def flat(tmp_path):
    """Return an image for VMMs that know neither multiboot nor firmware."""
    parts = {kind: tmp_path / f"flat.{kind}" for kind in ("o", "elf", "bin")}
    commands = [
        [need("as"), "--32", "-I", ROOT / "guests", "-o", parts["o"], ROOT / "tests/attach/flat.S"],
        [need("ld"), "-m", "elf_i386", "-Ttext=0", "-e", "_start", "-o", parts["elf"], parts["o"]],
        [need("objcopy"), "-O", "binary", parts["elf"], parts["bin"]],
    ]
    for command in commands:
        subprocess.run(command, check=True)
    return parts["bin"]


def test_kvmtool(tmp_path, flat):
    program = os.environ.get("KVMSR_KVMTOOL")
    if not program:
        pytest.skip("needs KVMSR_KVMTOOL, the program lkvm of kvmtool")
    options = "-m 64 -c 2 --console serial -n mode=none".split()
    status, lines = run(tmp_path, program, "run", "-k", flat, *options)
    assert (status, lines) == (0, IN_REAL_MODE)
    assert summary(tmp_path)["notes"] == []


@pytest.mark.peer
def test_virtme_ng(tmp_path, qemu):
    """A driver in Python, which the preloaded library does not disturb, starts QEMU."""
    vng = need("vng")
    program = tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(qemu)} "$@"\n')
    program.chmod(0o755)
    # The list is in the middle of what virtme-ng says to a Linux, and to this guest all the same.
    _, lines = run(
        tmp_path, vng, "--verbose", "--qemu", program, "--run", LIST, "--append", WORDS,
        "--memory", "128M", "--cpus", "1", "--qemu-opts=-cpu qemu64 -bios bios-microvm.bin",
        "--", "true",
    )  # fmt: skip
    begin = lines.index(SEEN[0])
    assert lines[begin : begin + len(SEEN)] == SEEN
    assert summary(tmp_path)["notes"] == []
