"""
kvm-unit-tests in QEMU say the same with ``kvmsr exec`` as without.

KVM_UNIT_TESTS names the folder with the images, as ``make`` in kvm-unit-tests leaves it in
``x86/``.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.qemu import summary
from tests.command import words_of
from tests.e2e.test_real_guests import qemu_cpu

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

SECONDS = 30
"""An image that has not ended by then does not end on this KVM, or takes long."""
SHORTER = 10
"""How long such an image runs under kvmsr."""

IMAGES = sorted(Path(os.environ.get("KVM_UNIT_TESTS", "/no")).glob("*.flat"))
# Registers that do in Python what they do in KVM.
POLICY = """
[[rule]]
msr = 0x277
read = { python = "registers:read" }
write = { python = "registers:write_pat" }
log = "never"

[[rule]]
msr = "0x400-0x427"
read = { python = "registers:read" }
write = { python = "registers:write_bank" }
log = "never"
"""
REGISTERS = """
from kvmsr.policy import Fault

values = {0x277: 0x0007040600070406}

def read(access):
    return values.get(access.index, 0)

def write_pat(access):
    if any(kind > 7 or kind in (2, 3) for kind in access.value.to_bytes(8, "little")):
        raise Fault
    values[access.index] = access.value

def write_bank(access):
    # Control takes all bits or none, but for the two that old Linuxes clear; status takes 0.
    control = access.value not in (0, 2**64 - 1) and access.value | 1 << 10 | 1 != 2**64 - 1
    if (access.index % 4 == 0 and control) or (access.index % 4 == 1 and access.value):
        raise Fault
    values[access.index] = access.value
"""


@pytest.fixture(scope="module")
def natively(qemu):
    """Return a function that remembers what an image prints, and how it ends, without kvmsr."""
    known = {}

    def lines(image):
        if image not in known:
            known[image] = run(command(qemu, image), SECONDS)
        return known[image]

    return lines


def command(qemu, image):
    return [
        *qemu, "-nodefaults", "-accel", "kvm", "-cpu", qemu_cpu(qemu), "-m", "256", "-no-reboot",
        "-bios", "bios-microvm.bin", "-display", "none", "-serial", "stdio",
        "-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
        "-kernel", str(image),
    ]  # fmt: skip


def run(words, seconds):
    """Return the verdicts that a guest printed, and its exit status; None if it did not end."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=SECONDS)
        status = None
    text = output.decode(errors="replace").replace("\r", "")
    return re.findall(r"^(?:PASS|FAIL|SKIP|XFAIL)\b.*\n", text, re.MULTILINE), status


@pytest.mark.parametrize("policy", ["", POLICY], ids=["empty", "handlers"])
@pytest.mark.parametrize("image", IMAGES or [None], ids=lambda path: path and path.stem)
def test_the_same_lines(tmp_path, qemu, natively, image, policy):
    if image is None:
        pytest.skip("needs KVM_UNIT_TESTS, the folder with the images of kvm-unit-tests")
    (tmp_path / "registers.py").write_text(REGISTERS)
    (tmp_path / "policy.toml").write_text(policy)
    expected, end = natively(image)
    got, status = run(
        words_of(
            "exec", "--policy", tmp_path / "policy.toml", "--json", "--summary",
            tmp_path / "summary.json", "--", *command(qemu, image),
        ),
        SHORTER if end is None else 3 * SECONDS,
    )  # fmt: skip
    if end is None:  # it got as far as it got in that time
        count = min(len(expected), len(got))
        expected, got = expected[:count], got[:count]
    assert got == expected
    assert status == end
    rules = [row for row in summary(tmp_path)["accesses"] if row["rule"].startswith("policy")]
    if policy and image.stem == "msr":
        assert sum(row["count"] for row in rules) > 100
