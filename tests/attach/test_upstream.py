"""A real guest under ``kvmsr exec``, a snapshot of it, and its trace, on upstream's KVM."""

import json
import re
from base64 import b64decode
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.upstream import END, LINUX, ONCE, boot
from tests.command import call
from tests.conftest import peer
from tests.e2e.test_userspace import work
from tests.nested.parts import MissingError

__all__ = ("work",)

pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of what the machine was given, and what came out of it."""
    return tmp_path_factory.mktemp("upstream")


@pytest.fixture(scope="module")
def output(folder, work):
    """Return what came out of the machine: the guest's output, and two traces."""
    try:
        done = boot(folder, work, peer("busybox", "**/busybox"))
    except MissingError as error:
        pytest.skip(f"needs {error}")
    assert done.status == 0, done.console_end
    text, *traces = done.output.split(f"{END}\n")
    return text, [b64decode(trace) for trace in traces]


def test_debians_kernel_and_a_snapshot_of_it(output):
    text, _, summary = output[0].partition("\n{")
    assert re.findall(r"^(?:rdmsr|wrmsr).*\S", text, re.MULTILINE) == [
        "rdmsr 0x35 = 0x20004",
        "wrmsr 0x35: Input/output error",
        "rdmsr 0x34 = 0x1122334455667788",
        "rdmsr 0x1b0 = 0x6",
        "wrmsr 0x1b0 = 0x77",
        "rdmsr 0x1b0 = 0x77",
        "wrmsr 0x1b0 = 0x88",
        "rdmsr 0x1b0 = 0x77",  # after the snapshot has been loaded, and its registers
        "wrmsr 0x1b0 = 0x88",
    ]
    report = json.loads("{" + summary)
    assert report["notes"] == []
    seen = {(row["index"], row["op"]): row["count"] for row in report["accesses"]}
    assert (seen["0x35", "read"], seen["0x1b0", "write"]) == (1, 3)


def test_its_trace(output, folder, kernel, monkeypatch):
    """From QEMU on upstream's KVM to a policy, and to the same guest on the soft backend."""
    monkeypatch.chdir(folder)
    for name, data in zip(("qemu", "learned"), output[1], strict=True):
        Path(name).write_bytes(data)
    (trace,) = json.loads(call("trace", "summary", "--json", "qemu").stdout)["traces"]
    seen = {(row["index"], row["op"]): row for row in trace["accesses"]}
    assert seen["0x1b0", "write"]["last_value"] == "0x77"
    assert seen["0x35", "write"]["outcomes"]["fault"] == 1
    assert seen["0xc0010015", "read"]["rule"].startswith("preset:linux:")
    assert (trace["cut"], trace["dropped"]) == ("", 0)

    # The learned policy gives the same guest the same answers.
    same = call("trace", "diff", "qemu", "learned")
    assert same.returncode == 0, same.stdout

    # On another CPU, with the recorded answers: what both do is as it was.
    boot_it = (kernel, "--initrd", "initrd", "--append", f"{LINUX} {ONCE}", "--backend", "soft")
    replayed = call("trace", "replay", "qemu", *boot_it)
    assert replayed.returncode == 0, replayed.stderr
    assert "rdmsr 0x34 = 0x1122334455667788" in replayed.stdout
    assert ": 0 divergences" in replayed.stdout + replayed.stderr
