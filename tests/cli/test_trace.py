"""The commands that read traces, as their users see them."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kvmsr.trace.file import OPS, OUTCOMES, Grade, Head, TraceWriter
from kvmsr.trace.file.columns import LATENCY, VALUE
from tests.cli.test_trace_files import COMMANDS
from tests.command import call, kvmsr, words_of
from tests.conftest import ROOT
from tests.trace.file.made import RULES, events, trace

WIDE = {"COLUMNS": "200"}


@pytest.fixture
def made():
    found = events(300)
    found["value"] %= 4096
    return found


@pytest.fixture
def path(tmp_path, made):
    head = {"backend": "soft", "policy": "quiet.toml"}
    return trace(tmp_path / "boot.arrows", made, **head)


def test_summary(path, made):
    out, err = kvmsr("trace", "summary", path)
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"{path}: kvmsr run of made on soft under quiet.toml (grade all)"
    reads, faults = int((made["op"] == 0).sum()), int((made["outcome"] == 2).sum())
    assert f"{reads} reads, {300 - reads} writes, {faults} faults" in lines
    assert re.fullmatch(
        r"latency of an access .*: p50 \d.* µs, p90 \d.* µs, p99 \d.* µs", lines[-1]
    )
    assert "\x1b" not in out
    assert any("IA32_MISC_ENABLE" in line and "quiet.toml:17 bits" in line for line in lines)


def test_latencies_are_shown_without_exponents(tmp_path):
    made = events(3)
    made["index"], made["op"], made["reason"], made["rule"] = 0x10, 0, 0, 0
    made["latency_ns"], made["outcome"], made["has"] = 20_400_000, 0, VALUE | LATENCY
    out, _ = kvmsr("trace", "summary", trace(tmp_path / "slow", made), env=os.environ | WIDE)
    assert re.search(r"│ +20,\d{3}, 20,\d{3}, 20,\d{3} │", out)


def test_summary_in_json(path, made):
    found = json.loads(kvmsr("trace", "summary", "--json", path)[0])
    (one,) = found["traces"]
    assert (found["schema"], one["file"], one["events"]) == (1, str(path), 300)
    assert sum(row["count"] for row in one["accesses"]) == 300
    row = one["accesses"][0]
    assert (row["index"], row["name"]) == ("0x10", "IA32_TIME_STAMP_COUNTER")
    assert row["latency_ns"].keys() == {"p50", "p90", "p99"}
    assert row["first"]["guest_ns"] <= row["last"]["guest_ns"]


def test_summary_by_vcpu_and_of_several_files(path, made):
    out = kvmsr("trace", "summary", "--by", "vcpu", path, path)[0]
    assert out.count(f"{path}: ") == 2
    assert "vCPU" in out
    rows = json.loads(kvmsr("trace", "summary", "--by", "vcpu", "--json", path)[0])["traces"][0]
    for vcpu in range(4):
        mine = sum(row["count"] for row in rows["accesses"] if row["vcpu"] == vcpu)
        assert mine == int((made["vcpu"] == vcpu).sum())


SLIDE = 0x1A400000


@pytest.mark.parametrize("moved", [True, False])
def test_functions_have_names(tmp_path, moved):
    base = 0xFFFFFFFF81000000
    (tmp_path / "System.map").write_text(
        f"{base:016x} T _text\n"
        f"{base + 0x100:016x} t native_read_msr\n"
        f"{base + 0x200:016x} t do_idle\n"
    )
    rows = events(20, rip=True)
    rows["rip"] = base + (SLIDE + 0x104 if moved else 0x204)
    path = trace(tmp_path / "trace", rows)
    words = ["trace", "summary", "--symbols", tmp_path / "System.map", path]
    out, errors = kvmsr(*words)
    assert ("native_read_msr+0x4" if moved else "do_idle+0x4") in out
    assert ("may be wrong" in errors) == (not moved)
    report = json.loads(kvmsr(*words, "--json")[0])
    [symbol] = {one["symbol"] for row in report["traces"][0]["accesses"] for one in row["rips"]}
    assert symbol == ("native_read_msr+0x4" if moved else "do_idle+0x4")
    _, errors = kvmsr("trace", "summary", "--symbols", path, path, status=3)
    assert errors.startswith(f"kvmsr: {path}: there are no functions: give the guest's kernel")


BASE = 0xFFFFFFFF81000000
MAP = {"native_read_msr": 0x100, "wrmsr_it": 0x200, "init_amd": 0x300, "init_intel": 0x400}


@pytest.fixture
def called(tmp_path):
    """A trace with callers, and the functions: init_amd asks twice, init_intel once."""
    (tmp_path / "System.map").write_text(
        "".join(f"{BASE + at:016x} t {name}\n" for name, at in MAP.items())
    )
    rows = events(3, callers=3)
    rows["rip"], rows["n_callers"], rows["guesses"] = BASE + SLIDE + 0x103, 2, [0b10, 0, 0b01]
    rows["callers"] = 0
    rows["callers"][:, 0] = np.array([0x210, 0x320, 0x210], np.uint64) + np.uint64(BASE + SLIDE)
    rows["callers"][:, 1] = np.array([0x310, 0x410, 0x408], np.uint64) + np.uint64(BASE + SLIDE)
    for name in ("index", "op", "outcome", "reason", "rule"):
        rows[name] = rows[name][0]
    return trace(tmp_path / "trace", rows), tmp_path / "System.map"


def test_rows_are_split_by_who_asked(called):
    path, functions = called
    words = ["trace", "summary", path]
    (one,) = json.loads(kvmsr(*words, "--json")[0])["traces"]
    by_caller = {row["asker"]: row["count"] for row in one["accesses"]}
    assert by_caller == {f"{BASE + SLIDE + 0x210:#x}": 2, f"{BASE + SLIDE + 0x320:#x}": 1}
    words += ["--symbols", functions]
    (one,) = json.loads(kvmsr(*words, "--json")[0])["traces"]
    assert {row["asker"]: row["count"] for row in one["accesses"]} == {
        "init_amd": 2, "init_intel": 1,
    }  # fmt: skip
    callers = one["accesses"][0]["rips"][0]["callers"]
    assert [caller["symbol"] for caller in callers] in (["wrmsr_it", "init_amd"], ["init_amd", ""])
    out, _ = kvmsr(*words)
    assert re.search("│ init_amd +│", out)


def test_who_called(called):
    path, functions = called
    lines = kvmsr("trace", "show", path)[0].splitlines()
    at = BASE + SLIDE
    assert lines[0].endswith(f") at {at + 0x103:#x} ← {at + 0x210:#x} ← {at + 0x310:#x}?")
    lines = kvmsr("trace", "show", path, "--symbols", functions)[0].splitlines()
    assert [line.partition(") at ")[2] for line in lines] == [
        "native_read_msr+0x3 ← wrmsr_it ← init_amd?",
        "native_read_msr+0x3 ← init_amd ← init_intel",
        "native_read_msr+0x3 ← wrmsr_it? ← init_intel",
    ]
    one = shown(path, "--symbols", functions)[0]
    assert (one["symbol"], one["callers"][1]) == (
        "native_read_msr+0x3",
        {"address": f"{at + 0x310:#x}", "guess": True, "symbol": "init_amd"},
    )
    head, first, *_ = kvmsr("trace", "export", "--to", "csv", path)[0].splitlines()
    assert head.endswith(",rip,cpl,callers")
    assert first.endswith(f",{at + 0x103:#x},0,{at + 0x210:#x} {at + 0x310:#x}?")
    words = ["trace", "export", path, "--symbols", functions]
    assert (
        kvmsr(*words, "--to", "csv")[0]
        .splitlines()[1]
        .endswith(",wrmsr_it init_amd?,native_read_msr+0x3")
    )
    events_ = json.loads(kvmsr(*words, "--to", "perfetto")[0])["traceEvents"]
    assert events_[-1]["args"]["where"] == "native_read_msr+0x3 ← wrmsr_it? ← init_intel"
    _, error = kvmsr(*words, "--to", "parquet", status=2)
    assert "a Parquet file has addresses only" in error


def test_a_learned_policy_says_who_asked(called):
    path, functions = called
    text, _ = kvmsr("trace", "policy", path, "--symbols", functions)
    assert ", by init_amd (2), init_intel (1)\n" in text
    text, _ = kvmsr("trace", "policy", path)
    assert f", by {BASE + SLIDE + 0x210:#x} (2), {BASE + SLIDE + 0x320:#x} (1)\n" in text


def shown(path, *words):
    return [
        json.loads(line)
        for line in kvmsr("trace", "show", path, "--json", *words)[0].split("\n")[:-1]
    ]


def test_show(path, made):
    lines = kvmsr("trace", "show", path)[0].splitlines()
    assert len(lines) == 300
    event, op, outcome = made[0], OPS[made[0]["op"]], OUTCOMES[made[0]["outcome"]]
    begin = f"{event['guest_ns'] / 1e9:14.9f} vCPU {event['vcpu']} {op:5} {event['index']:#x} "
    assert lines[0].startswith(begin)
    assert f" = {event['value']:#x}: {outcome} (" in lines[0]
    rule, took = RULES[event["rule"]], event["latency_ns"]
    assert lines[0].endswith(f", {rule}, {took / 1e3:.3g} µs)" if took > 999 else f"{took} ns)")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--msr", "IA32_MISC_ENABLE"], lambda e: e["index"] == 0x1A0),
        (["--msr", "IA32_MISC*"], lambda e: e["index"] == 0x1A0),
        (["--msr", "0x10-0x40"], lambda e: (e["index"] >= 0x10) & (e["index"] <= 0x40)),
        (["--msr", "16", "--msr", "0x8b"], lambda e: np.isin(e["index"], [0x10, 0x8B])),
        (["--msr", "0xffffffff"], lambda e: e["index"] == 1),
        (["--vcpu", "1", "--vcpu", "3"], lambda e: np.isin(e["vcpu"], [1, 3])),
        (["--op", "read"], lambda e: e["op"] == 0),
        (["--outcome", "fault"], lambda e: e["outcome"] == 2),
        (["--outcome", "value", "--outcome", "done"], lambda e: e["outcome"] < 2),
        (["--since", "1ms"], lambda e: e["guest_ns"] >= 10**6),
        (["--since", "0.0005"], lambda e: e["guest_ns"] >= 500_000),
        (
            ["--since", "250us", "--op", "write"],
            lambda e: (e["guest_ns"] >= 250_000) & (e["op"] == 1),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_show_selects(path, made, words, wanted):
    assert [one["time_ns"] for one in shown(path, *words)] == made[wanted(made)]["time_ns"].tolist()


def test_show_decodes(path, tmp_path):
    made = events(1)
    made["index"], made["value"], made["has"] = 0x1A0, 0x850089, 9
    one = trace(tmp_path / "one", made)
    lines = kvmsr("trace", "show", one, "--decode")[0].splitlines()
    assert lines[1].strip().startswith("fast_strings, thermal_control, perfmon, ")
    (row,) = shown(one, "--decode")
    (perfmon,) = (field for field in row["fields"] if field["name"] == "perfmon")
    assert perfmon == {
        "name": "perfmon", "bits": "7", "value": 1, "meaning": "performance counters exist",
    }  # fmt: skip


def test_show_decodes_with_the_units_that_the_guest_has_read(path, tmp_path):
    made = events(3)
    made["index"], made["has"] = [0x611, 0x606, 0x611], 9
    made["value"] = [0x8000, 0xA1003, 0x8000]
    one = trace(tmp_path / "one", made)
    lines = kvmsr("trace", "show", one, "--decode")[0].splitlines()
    assert [lines[1].strip(), lines[5].strip()] == ["energy=2 J", "energy=500 mJ"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--msr", "IA32_MISC_ENABEL"], "did you mean IA32_MISC_ENABLE"),
        (["--msr", "5-4"], "5-4 ends before it begins"),
        (["--since", "soon"], "'soon' is not a time: write seconds, or 10ms, 250us, 2s"),
        (["--vcpu", "-1"], "not in the range"),
        (["--outcome", "bad"], "'bad' is not one of"),
    ],
)
def test_show_refuses(path, words, message):
    out, err = kvmsr("trace", "show", path, *words, status=2)
    assert message in err
    assert out == ""


def test_diff(path, tmp_path, made):
    out, err = kvmsr("trace", "diff", path, path)
    assert out.splitlines()[-1] == "10 pairs of MSR and direction: equal"
    assert err == ""
    other = made.copy()
    other["value"][np.flatnonzero((made["index"] == 0x1A0) & (made["outcome"] == 0))[0]] = 0xABCDE
    other["index"][7] = 0x36
    b = trace(tmp_path / "b", other)
    out, _ = kvmsr("trace", "diff", path, b, status=1)
    assert re.search(r"0x36 .*none .*(value|done|fault) 1", out)
    assert re.search(r"0x1a0 .*IA32_MISC_ENABLE .*read.*access 1: 0x.* in A, 0xabcde in B", out)
    assert re.search(r"order: vCPU \d, access \d+: .* in A, .* of 0x36 in B", out)
    found = json.loads(kvmsr("trace", "diff", "--json", path, b, status=1)[0])
    assert found["differ"]
    row = next(one for one in found["msrs"] if one["index"] == "0x1a0")
    assert row["first"]["b"] == {"outcome": "value", "value": "0xabcde"}
    assert not json.loads(kvmsr("trace", "diff", "--json", path, path)[0])["differ"]


def test_export(path, tmp_path, made):
    target = tmp_path / "out"
    assert kvmsr("trace", "export", path, "--to", "csv", "-o", target) == ("", "")
    assert len(list(csv.DictReader(target.read_text().splitlines()))) == 300
    rows = kvmsr("trace", "export", path, "--to", "jsonl")[0].splitlines()
    assert [json.loads(row)["vcpu"] for row in rows] == made["vcpu"].tolist()
    kvmsr("trace", "export", path, "--to", "perfetto", "-o", target)
    assert len(json.loads(target.read_text())["traceEvents"]) == 300 + 2 * 4


def test_export_never_writes_over_the_trace(path, tmp_path):
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link"):
        _, err = kvmsr("trace", "export", path, "--to", "csv", "-o", name, status=2)
        assert err == f"kvmsr: -o {name}: that is the trace itself; name another file\n"
    assert path.read_bytes() == before


def test_export_to_a_place_that_cannot_be_written(path, tmp_path):
    target = tmp_path / "no" / "file"
    _, err = kvmsr("trace", "export", path, "--to", "csv", "-o", target, status=2)
    assert err == f"kvmsr: -o {target}: cannot be written: No such file or directory\n"
    if Path("/dev/full").exists():
        _, err = kvmsr("trace", "export", path, "--to", "csv", "-o", "/dev/full", status=2)
        assert err == "kvmsr: -o /dev/full: cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_dropped_accesses_are_shown_everywhere(tmp_path, made, command):
    made["has"][5], made["count"][5] = VALUE, 1234
    path = trace(tmp_path / "a", made)
    done = call("trace", *command(path))
    assert done.returncode == 0
    said = "1,234 accesses came too fast to be recorded, and were only counted"
    assert said in done.stdout + done.stderr
    counted = trace(tmp_path / "b", made, grade=Grade.COUNT)
    done = call("trace", *command(counted))
    assert "too fast" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_reads(path, tmp_path, command):
    big = trace(tmp_path / "big", events(60_000))
    words = words_of("trace", *command(big))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(60) in (0, 1)
    assert "Traceback" not in err
    assert "Exception" not in err


def follow(path):
    words = words_of("trace", "show", "--follow", path)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_follow(tmp_path, made):
    path = tmp_path / "growing"
    path.touch()
    with follow(path) as process:
        with TraceWriter(path, Head()) as writer:
            for part in np.array_split(made, 3):
                writer.write(part, RULES)
                for event in part:
                    line = process.stdout.readline()
                    assert float(line.split()[0]) == pytest.approx(event["guest_ns"] / 1e9)
                assert process.poll() is None
        assert process.stdout.read() == ""
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_follow_is_interrupted(tmp_path, made):
    path = tmp_path / "growing"
    with TraceWriter(path, Head()) as writer, follow(path) as process:
        writer.write(made, RULES)
        for _ in made:
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read().strip() == ""


def test_follow_ends_where_a_new_run_replaces_the_trace(tmp_path, made):
    path = tmp_path / "growing"
    with TraceWriter(path, Head()) as writer, follow(path) as process:
        writer.write(made, RULES)
        for _ in made:
            assert process.stdout.readline()
        assert process.poll() is None
        os.truncate(path, 0)
        assert process.wait(30) == 0
        assert "incomplete" in process.stderr.read()


def test_follow_ends_with_a_writer_that_is_killed(tmp_path):
    path = tmp_path / "growing"
    script = """
import sys, time
from pathlib import Path
from kvmsr.trace.file import Head, TraceWriter
from tests.trace.file.made import RULES, events
writer = TraceWriter(Path(sys.argv[1]), Head())
writer.write(events(3), RULES)
print("written", flush=True)
time.sleep(60)
"""
    path.touch()
    with (
        follow(path) as process,
        subprocess.Popen(
            [sys.executable, "-c", script, path], stdout=subprocess.PIPE, cwd=ROOT
        ) as writer,
    ):
        try:
            for _ in range(3):
                assert process.stdout.readline()
            assert process.poll() is None
        finally:
            writer.kill()
        assert process.wait(30) == 0
        assert "its end is missing" in process.stderr.read()


def test_follow_needs_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    _, err = kvmsr("trace", "show", "--follow", tmp_path / "fifo", status=3)
    assert err == f"kvmsr: {tmp_path}/fifo: only a regular file can be followed\n"


def on_a_terminal(*words):
    """Return what a command prints on a terminal of 120 columns."""
    leader, follower = pty.openpty()
    os.set_blocking(leader, True)
    parts = []

    def read():
        try:
            while data := os.read(leader, 4096):
                parts.append(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    env = {**os.environ, "COLUMNS": "120", "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    done = subprocess.run(words_of(*words), stdout=follower, stdin=follower, env=env, check=False)
    os.close(follower)
    reader.join(30)
    os.close(leader)
    assert done.returncode in (0, 1)
    return b"".join(parts).decode()


def test_colour_is_for_terminals(path):
    for words in (["summary", path], ["show", path]):
        assert "\x1b[31mfault" in on_a_terminal("trace", *words)
        assert "\x1b" not in kvmsr("trace", *words)[0]


def test_rules_cannot_forge_lines(tmp_path, made):
    path = trace(tmp_path / "a", made, ["\x1b[2J\nforged", "[red]b", "c"])
    for command in ("summary", "show"):
        out = call("trace", command, path).stdout
        assert "\x1b" not in out
        assert "\nforged" not in out
        assert "[red]b" in out


def test_help(path):
    for name in ("summary", "show", "diff", "export"):
        assert f"kvmsr trace {name}" in kvmsr("trace", name, "--help")[0]
