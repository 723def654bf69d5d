"""One guest under one policy, run in every possible way, gives the same rows and log lines."""

import json
import re

import pytest

from kvmsr import Boot, Machine, backend, load_policy, native
from tests.command import call
from tests.conftest import GUESTS, peer

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

EFER, RESERVED = 0xC0000080, 1 << 49
UNKNOWN = 0x474F4F00
WORDS = (
    f"36 36 1b0=5 1b0 1b1 1b1=7 {UNKNOWN:x} {UNKNOWN:x}=9 174=1234 174 174=8"
    f" {EFER:x}={RESERVED:x} {EFER:x}={RESERVED | 1:x} 1b2=3 1b2=1 1b2"
)
MSRS = {0x36, 0x1B0, 0x1B1, 0x1B2, 0x174, EFER, UNKNOWN}

# (QEMU has its own filter for 0x35, so under QEMU KVM gives another reason for that MSR.)
# A constant; shadows, with bits; handlers that answer and fail; an MSR for which KVM is asked
# because a condition fails; values that KVM is asked to write and refuses, for a default and a
# handler.
POLICY = f"""
[[rule]]
msr = 0x36
read = {{ value = 0x20004 }}
[[rule]]
msr = 0x1b0
read = "shadow"
write = "shadow"
[[rule]]
msr = 0x1b1
read = {{ python = "seen:answer" }}
write = {{ python = "seen:fails" }}
log = "always"
[[rule]]
msr = 0x1b2
read = "shadow"
write = "shadow"
bits = {{ "0" = "lock", "1" = "rw" }}
log = "always"
[[rule]]
msr = 0x174
write = "ignore"
when = {{ value = 8 }}
[[rule]]
msr = {EFER:#x}
write = {{ python = "seen:answer" }}
when = {{ value = {RESERVED | 1:#x}, reason = "invalid" }}
[[rule]]
msr = {EFER:#x}
write = "ignore"
when = {{ value = 1, mask = 0x7fffffffffffffff }}
"""
HANDLERS = """
import os

def record(access):
    with open(os.environ["SEEN"], "a") as file:
        print(*access, file=file)

def answer(access):
    record(access)
    return None if access.op == "write" else 0x77

def fails(access):
    record(access)
    raise ValueError("not for you")
"""


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "seen.py").write_text(HANDLERS)
    return tmp_path / "policy.toml"


class Leavings:
    """What can be compared of a run: rows, log lines, failures, and accesses that handlers saw."""

    def __init__(self, result, log, seen):
        self.rows = [
            {key: value for key, value in row.items() if key != "first_rip"}
            for row in result["accesses"]
            if int(row["index"], 16) in MSRS and row["rule"] != "kernel"
        ]
        self.log = [line for line in log if not re.search("wrmsr|EFER.*0x[dD]00", line)]
        self.failures = result["handler_failures"]
        self.seen = seen


def run_ours(kind, policy, monkeypatch, **options):
    seen = policy.parent / f"seen-{kind}"
    seen.unlink(missing_ok=True)
    monkeypatch.setenv("SEEN", str(seen))
    log, sent = [], bytearray()
    name, _, profile = kind.partition(":")
    opened = backend.open(name, **({"profile": profile} if profile else {}))
    with Machine(
        opened,
        memory=16 << 20,
        policy=load_policy(policy),
        log=lambda access, outcome, line: log.append(line),
        output=sent.extend,
        **options,
    ) as machine:
        machine.load(Boot(GUESTS / "list.elf", WORDS))
        result = machine.run(60)
    lines = sent.decode().replace("\r\n", "\n").splitlines()
    return Leavings(result.as_dict(), log, seen.read_text()), lines, result


def run_under_qemu(policy, qemu, monkeypatch):
    folder = policy.parent
    seen, log, summary, serial = (folder / name for name in ("seen", "log", "summary", "serial"))
    monkeypatch.setenv("SEEN", str(seen))
    bios = peer("seabios", "usr/share/seabios/bios.bin")
    words = [
        "exec", "--policy", policy, "--log", log, "--json", "--summary", summary, "--",
        *qemu, "-accel", "kvm", "-bios", bios, "-m", "64",
        "-kernel", GUESTS / "list.elf", "-append", WORDS, "-serial", f"file:{serial}",
        "-display", "none", "-nodefaults", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4",
    ]  # fmt: skip
    call(*words, timeout=60)
    lines = serial.read_text().replace("\r\n", "\n").splitlines()
    result = json.loads(summary.read_text())
    return Leavings(result, log.read_text().splitlines(), seen.read_text()), lines


def host_profile():
    """Return the soft profile that matches this host's KVM, if there is one."""
    from tests.differential.places import host

    try:
        with host() as place:
            return place.profile
    except Exception as error:
        pytest.skip(f"needs {error}")


@pytest.mark.parametrize("swallow", [False, True], ids=["plain", "swallowed"])
def test_the_same_in_c_in_python_and_on_soft(policy, monkeypatch, swallow):
    in_c, lines, result = run_ours("kvm", policy, monkeypatch, ignore_msrs=swallow)
    in_python, python_lines, python_result = run_ours(
        "kvm", policy, monkeypatch, ignore_msrs=swallow, native=False
    )
    soft, soft_lines, _ = run_ours(
        f"soft:{host_profile()}", policy, monkeypatch, ignore_msrs=swallow
    )
    assert vars(in_c) == vars(in_python) == vars(soft)
    assert lines == python_lines == soft_lines
    # First RIPs are equal if the same guest ran on the same KVM.
    assert [row.first_rip for row in result.summary] == [
        row.first_rip for row in python_result.summary
    ]
    reasons = {(row["index"], row["op"]): row["reason"] for row in in_c.rows}
    assert reasons[f"{EFER:#x}", "write"] == "invalid"  # KVM was asked, and refused
    assert reasons[f"{UNKNOWN:#x}", "read"] == "unknown"  # even if the host swallows accesses
    assert f"write {EFER} {RESERVED | 1} invalid" in in_c.seen
    assert any("invalid" in line for line in in_c.log)


@pytest.mark.peer
def test_the_same_under_qemu(policy, qemu, monkeypatch):
    ours, lines, _ = run_ours("kvm", policy, monkeypatch)
    under_qemu, qemu_lines = run_under_qemu(policy, qemu, monkeypatch)
    assert qemu_lines == lines
    assert vars(under_qemu) == vars(ours)
