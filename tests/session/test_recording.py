"""What a guest asked and was told is in the trace, in the order in which it happened."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest

from kvmsr import Boot, Machine
from kvmsr.errors import TraceError
from kvmsr.session import recording
from kvmsr.trace import Grade, TraceOptions
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Trace
from kvmsr.trace.file.columns import CPL, RIP, VALUE, event_type
from tests.command import call, words_of
from tests.conftest import GUESTS, need

UNKNOWN = 0x474F4F00
WORDS = f"36 36 1b0=5 1b0 1b0=7 1b0 36 {UNKNOWN:x} {UNKNOWN:x}=9"
POLICY = """
[[rule]]
msr = 0x36
read = { value = 0x20004 }
[[rule]]
msr = 0x1b0
read = "shadow"
write = "shadow"
"""
SEEN = [
    ("read", 0x36, 0x20004, "value", "policy.toml:2"),
    ("read", 0x36, 0x20004, "value", "policy.toml:2"),
    ("write", 0x1B0, 5, "done", "policy.toml:5"),
    ("read", 0x1B0, 5, "value", "policy.toml:5"),
    ("write", 0x1B0, 7, "done", "policy.toml:5"),
    ("read", 0x1B0, 7, "value", "policy.toml:5"),
    ("read", 0x36, 0x20004, "value", "policy.toml:2"),
    ("read", UNKNOWN, None, "fault", "defaults.unknown"),
    ("write", UNKNOWN, 9, "fault", "defaults.unknown"),
]
CONSTANT = "[[rule]]\nmsr = 0x35\nread = { value = 0x1200 }\n"
MANY = 150_000


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path / "policy.toml"


def machine(kind, policy, trace, **options):
    return Machine(
        "soft" if kind == "soft" else "kvm", policy=policy, native=kind == "c", trace=trace,
        **{"memory": "16M"} | options,
    )  # fmt: skip


def run(kind, policy, *, boot, **options):
    """Run a guest; return its result, the trace and its rows."""
    path = policy.parent / "trace.arrows"
    with machine(kind, policy, TraceOptions(path, **options)) as guest:
        guest.load(boot)
        result = guest.run(60)
    return result, *read(path)


def read(path):
    with Trace(path) as trace:
        return trace, np.concatenate([np.zeros(0, event_type(trace.callers)), *trace.batches()])


def shown(trace, rows):
    return [
        (
            OPS[row["op"]], int(row["index"]), int(row["value"]) if row["has"] & VALUE else None,
            OUTCOMES[row["outcome"]], trace.rules[row["rule"]],
        )
        for row in rows
    ]  # fmt: skip


def totals(trace, rows):
    found = {}
    for row in rows:
        key = (
            int(row["index"]),
            OPS[row["op"]],
            OUTCOMES[row["outcome"]],
            trace.rules[row["rule"]],
        )
        found[key] = found.get(key, 0) + int(row["count"])
    return found


def totals_of(result):
    return {
        (int(row["index"], 16), row["op"], outcome, row["rule"]): count
        for row in result.as_dict()["accesses"]
        for outcome, count in row["outcomes"].items()
        if count
    }


def test_what_the_guest_asked_and_was_told(kind, policy):
    result, trace, rows = run(kind, policy, boot=Boot(GUESTS / "list.elf", WORDS))
    assert trace.cut == ""
    assert shown(trace, rows) == SEEN
    assert totals(trace, rows) == totals_of(result)
    assert {REASONS[row["reason"]] for row in rows[-2:]} == {"unknown"}
    assert (rows["count"] == 1).all()
    assert (rows["has"] & LATENCY != 0).all()
    assert (rows["has"] & RIP == 0).all()
    assert (rows["latency_ns"] > 0).all()
    assert (np.diff(rows["guest_ns"].astype(np.int64)) >= 0).all()
    assert rows["guest_ns"][-1] < 60e9
    assert abs(time.time() - int(rows["time_ns"][-1]) / 1e9) < 60
    assert result.notes == () or kind != "c"


def test_the_head_says_what_ran(kind, policy):
    result, trace, _ = run(kind, policy, boot=Boot(GUESTS / "list.elf", WORDS))
    head = trace.head
    assert (head.command, head.backend) == ("run", result.backend)
    assert head.image == str(GUESTS / "list.elf")
    assert head.policy_text == {str(policy): POLICY}
    assert head.host["kernel"]
    assert any(entry[0] == 1 and entry[2] for entry in head.cpuid)


def test_rip_and_cpl(kind, policy):
    boot = Boot(GUESTS / "list.elf", WORDS)
    result, trace, rows = run(kind, policy, boot=boot, rip=True)
    assert shown(trace, rows) == SEEN
    assert (rows["has"] & (RIP | CPL) == RIP | CPL).all()
    first = {(row.index, str(row.op)): row.first_rip for row in result.summary}
    assert int(rows["rip"][0]) == first[0x36, "read"]
    assert len(set(rows["rip"].tolist())) == 2  # one RDMSR and one WRMSR
    assert (rows["cpl"] == 0).all()


@pytest.mark.parametrize(
    ("grade", "places"),
    [
        (Grade.COUNT, []),
        (Grade.ONCE, [0, 2, 3, 7, 8]),
        (Grade.CHANGE, [0, 2, 3, 4, 5, 7, 8]),
        (Grade.ALL, list(range(len(SEEN)))),
    ],
)
def test_grades(kind, policy, grade, places):
    boot = Boot(GUESTS / "list.elf", WORDS)
    result, trace, rows = run(kind, policy, boot=boot, grade=grade)
    assert trace.head.grade is grade
    each = rows[rows["has"] & LATENCY != 0]
    assert shown(trace, each) == [SEEN[place] for place in places]
    assert totals(trace, rows) == totals_of(result)


@pytest.mark.parametrize("lossless", [False, True])
def test_accesses_that_come_too_fast(kind, policy, loop, monkeypatch, lossless):
    if kind == "soft":
        pytest.skip("the soft CPU is slower than any trace")
    policy.write_text(CONSTANT)
    pause = 0.2 if lossless else 1000  # until the end
    monkeypatch.setattr(recording, "_PAUSE", pause)
    monkeypatch.setattr(recording, "_LONGEST_PAUSE", pause)
    monkeypatch.setattr(recording, "_MOST_WAITING", 5000)
    result, trace, rows = run(kind, policy, boot=Boot(loop(MANY), mode=16), lossless=lossless)
    assert totals(trace, rows) == totals_of(result)
    assert int(rows["count"].sum()) == MANY
    lost = int(rows["count"][rows["has"] & LATENCY == 0].sum())
    if lossless:
        assert (lost, result.notes) == (0, ())
    else:
        assert lost > 0
        [note] = result.notes
        assert note == (
            f"{lost:,} accesses came too fast for the trace, which only counts them: --lossless"
            " waits"
        )


def test_a_trace_that_cannot_be_written(kind, policy):
    trace = TraceOptions(policy.parent / "none" / "trace")
    with machine(kind, policy, trace) as guest:
        guest.load(Boot(GUESTS / "list.elf", WORDS))
        with pytest.raises(TraceError, match="the trace cannot be written: No such file"):
            guest.run(60)


@pytest.mark.kvm
def test_a_full_disk(policy, loop):
    """The guest runs on, and the trace keeps what it had."""
    policy.write_text(CONSTANT)
    disk = policy.parent / "disk"
    disk.mkdir()
    path = disk / "trace.arrows"
    words = words_of(
        "run", loop(MANY), "--mode", "16", "--policy", policy, "--json", "--trace", path,
        "--lossless", "--backend", "kvm",
    )  # fmt: skip
    kept = policy.parent / "kept"
    script = f'mount -t tmpfs -o size=2m none {disk} && "$@"; cp {path} {kept}'
    own = [need("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    limited = [*own, script, "sh", *words]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["totals"]["reads"] == MANY
    trace, rows = read(kept)
    assert 0 < len(rows) < MANY
    assert trace.cut == "its end is missing"
    [note] = report["notes"]
    assert note == (
        f"{path}: the trace cannot be written: No space left on device; it ends with access"
        f" {len(rows):,}"
    )


@pytest.mark.kvm
def test_kill_9_loses_the_last_second_at_most(policy, loop, start):
    policy.write_text(CONSTANT)
    path = policy.parent / "trace.arrows"
    words = ["run", loop(1 << 30), "--mode", "16", "--policy", policy, "--trace", path]
    process = start(
        words_of(*words, "--backend", "kvm"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 1 << 20):
        time.sleep(0.05)
    time.sleep(1)
    killed = time.time()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    trace, rows = read(path)
    assert trace.cut
    assert killed - 1 < int(rows["time_ns"][-1]) / 1e9 < killed + 0.1


@pytest.mark.parametrize(
    "option", ["--trace-rip", "--trace-callers=3", "--lossless", "--trace-grade=once"]
)
def test_how_to_record_without_where(option, policy):
    done = call("run", "--bios", "none", option)
    assert done.returncode == 2
    name = option.partition("=")[0]
    assert f"{name} is about a trace, and there is none: add --trace FILE" in done.stderr
