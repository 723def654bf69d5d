"""What cannot be under the policy: the VMM is as without kvmsr, and everybody learns of it."""

import json
import subprocess

import pytest

from kvmsr import native
from tests.attach.test_exec import CONSTANT, COUNT, command, run

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

HANDLED = "[[rule]]\nmsr = 0x277\nread = { value = 1 }\n"  # by KVM: takes a range of the filter
LOST = [
    ("crowd", CONSTANT, "too many vCPUs"),
    ("vms", CONSTANT, "no more than 128 at a time"),
    ("full", CONSTANT + HANDLED, "1 filter range of the policy found no room"),
]


def required(tmp_path, policy, *vmm):
    words = command(tmp_path, policy, *vmm)
    words.insert(words.index("--json"), "--require")
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def ends_well(tmp_path, vmm, *words):
    """Return a program that ends with status 0 if the VMM, which does not, has run its guest."""
    program = tmp_path / "well"
    program.write_text(f"#!/bin/sh\n{' '.join(map(str, [*vmm, *words]))}\ntest $? = 7\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("how", "policy", "why"), LOST, ids=[how for how, _, _ in LOST])
def test_a_loss_is_the_first_line_and_the_exit_status(tmp_path, vmm, how, policy, why):
    alone = subprocess.run([*vmm, "1", how], capture_output=True, text=True, check=False)
    well = ends_well(tmp_path, vmm, COUNT, how)
    words = command(tmp_path, policy, well)
    words.remove("--json")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    first = (tmp_path / "summary.json").read_text().splitlines()[0]
    assert first.startswith("not under the policy: ")
    assert why in first
    if how == "full":  # all but that range is under the policy
        assert (done.returncode, done.stdout.split()[0]) == (6, str(0x1200))
        return
    done, report = run(tmp_path, policy, *vmm, 1, how)
    assert (done.returncode, done.stdout) == (alone.returncode, alone.stdout)
    assert any(why in loss for loss in report["losses"])


@pytest.mark.parametrize(("how", "policy", "why"), LOST, ids=[how for how, _, _ in LOST])
def test_with_require_the_vm_does_not_run(tmp_path, vmm, how, policy, why):
    done = required(tmp_path, policy, *vmm, COUNT, how)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Operation not permitted" in done.stderr
    report = json.loads((tmp_path / "summary.json").read_text())
    assert any(why in loss for loss in report["losses"])
    assert report["totals"]["reads"] == 0


def test_with_require_nothing_runs_where_the_shim_cannot_attach(tmp_path, vmm):
    strayed = ["env", "KVMSR_BLOCK=1:900:901", *vmm]
    done = required(tmp_path, CONSTANT, *strayed, COUNT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "KVM_CREATE_VM: Operation not permitted" in done.stderr


def test_with_require_all_else_is_as_without(tmp_path, vmm):
    done = required(tmp_path, CONSTANT, *vmm, COUNT)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (7, str(0x1200), "")


def test_each_vm_is_named_by_its_process(tmp_path, vmm):
    other = tmp_path / "other"
    other.symlink_to(vmm[0])
    both = f"{vmm[0]} {vmm[1]} 1000; {other} {vmm[1]} 3000"
    _, report = run(tmp_path, CONSTANT, "/bin/sh", "-c", both)
    assert [(vm["process"], vm["accesses"], vm["vcpus"]) for vm in report["vms"]] == [
        ("vmm", 1000, 1), ("other", 3000, 1),
    ]  # fmt: skip
    assert len({vm["pid"] for vm in report["vms"]}) == 2
    words = command(tmp_path, CONSTANT, "/bin/sh", "-c", both)
    words.remove("--json")
    subprocess.run(words, capture_output=True, timeout=120, check=False)
    lines = (tmp_path / "summary.json").read_text().splitlines()
    assert [line.split(" (")[0] for line in lines if line.startswith("VM of")] == [
        "VM of vmm", "VM of other",
    ]  # fmt: skip
