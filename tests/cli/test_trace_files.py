"""Whatever file a command is given, there is one clear line, and no traceback."""

import json
import random

import pytest

from kvmsr.trace.file import Head
from tests.command import call
from tests.trace.file.made import events, trace
from tests.trace.file.test_file import arrow_stream, mutate

COMMANDS = [
    pytest.param(lambda path: ["summary", path], id="summary"),
    pytest.param(lambda path: ["show", path], id="show"),
    pytest.param(lambda path: ["diff", path, path], id="diff"),
    pytest.param(lambda path: ["export", path, "--to", "csv"], id="export csv"),
    pytest.param(lambda path: ["export", path, "--to", "perfetto"], id="export perfetto"),
]


def missing(path):
    path.unlink(missing_ok=True)


def newer(path):
    head = json.loads(Head(kvmsr="9.0").encoded()) | {"schema": 9}
    arrow_stream(path, {"kvmsr": json.dumps(head).encode()})


def lying(path):
    """The length of the first batch is far beyond the file's."""
    data = trace(path, events(50)).read_bytes()
    at = data.rindex(b"\xff\xff\xff\xff", 0, len(data) - 8)
    path.write_bytes(data[: at + 4] + b"\xff\xff\xff\x7f" + data[at + 8 :])


BAD = {
    "missing": (missing, "the trace cannot be read: No such file or directory"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "foreign": (lambda path: path.write_bytes(b"[[rule]]\n" * 9), "this is not a trace of kvmsr"),
    "arrow": (lambda path: arrow_stream(path, {"x": "1"}), "but another Arrow file"),
    "head": (
        lambda path: path.write_bytes(trace(path, events(1)).read_bytes()[:300]),
        "it ends within its head",
    ),
    "newer": (newer, "its format has version 9, and this kvmsr reads version 1"),
    "lying": (lying, "the trace is damaged: it is not an Arrow stream"),
    "folder": (lambda path: path.mkdir(), "it is a directory"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_files(tmp_path, command, bad):
    make, message = BAD[bad]
    path = tmp_path / "bad.arrows"
    make(path)
    done = call("trace", *command(path))
    assert done.returncode == 3
    assert done.stderr.startswith(f"kvmsr: {path}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_truncated_trace_is_shown_up_to_the_cut(tmp_path, command):
    path = trace(tmp_path / "a", events(100))
    whole = call("trace", *command(path))
    path.write_bytes(path.read_bytes()[:-8])
    done = call("trace", *command(path))
    assert done.returncode == 0
    assert done.stdout == whole.stdout
    line = f"kvmsr: {path}: the trace is incomplete, and was read up to there: its end is missing\n"
    assert set(done.stderr.splitlines(keepends=True)) == {line}


@pytest.mark.parametrize("command", COMMANDS)
def test_mutated_traces(tmp_path, command):
    path = trace(tmp_path / "a", events(20, rip=True))
    good, chance = path.read_bytes(), random.Random(7)
    for _ in range(3):
        path.write_bytes(mutate(good, chance))
        done = call("trace", *command(path))
        assert done.returncode in (0, 3)
        assert "Traceback" not in done.stderr
        assert "bug in kvmsr" not in done.stderr
        assert len(set(done.stderr.splitlines())) <= 2


def test_an_export_that_fails_leaves_nothing(tmp_path):
    lying(tmp_path / "a")
    target = tmp_path / "out.csv"
    done = call("trace", "export", tmp_path / "a", "--to", "csv", "-o", target)
    assert done.returncode == 3
    assert not target.exists()


@pytest.mark.parametrize("words", [["summary"], ["show"], ["diff", "a"], ["export", "a"], ["none"]])
def test_wrong_usage(words):
    done = call("trace", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
