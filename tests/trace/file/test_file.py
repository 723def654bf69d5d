"""Trace files: what is written is read, and what is damaged is refused or read up to the cut."""

import json
import os
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import TraceError
from kvmsr.trace.file import Grade, Head, Trace, TraceWriter
from kvmsr.trace.file.columns import caller, columns, event_type, values
from kvmsr.trace.file.strings import LONGEST_WORD, WordReader, encode
from kvmsr.trace.file.writer import MAX_BATCH
from tests.trace.file.made import RULES, events, trace

BATCHES = 3
ROWS = 100


def read(path):
    with Trace(path) as found:
        batches = list(found.batches())
        rows = np.concatenate([np.zeros(0, event_type(found.callers)), *batches])
        return found, rows


def rules_of(rules, rows):
    return [rules[number] for number in rows["rule"]]


def same(got, got_rules, wanted, wanted_rules):
    assert rules_of(got_rules, got) == rules_of(wanted_rules, wanted)
    assert got.dtype == wanted.dtype
    for name in wanted.dtype.names:
        if name != "rule":
            assert (got[name] == wanted[name]).all(), name


@pytest.fixture
def small(tmp_path):
    """A trace of three batches."""
    path = tmp_path / "small.arrows"
    with TraceWriter(path, Head(kvmsr="0.1", image="made")) as writer:
        for seed in range(BATCHES):
            writer.write(events(ROWS, seed=seed), RULES)
    return path


@pytest.mark.parametrize("more", [{}, {"rip": True}, {"callers": 1}, {"callers": 8}])
def test_what_is_written_is_read(tmp_path, more):
    made = events(MAX_BATCH + 1000, **more)
    head = {
        "command": "exec", "backend": "kvm", "host": {"kernel": "6.1"}, "policy": "quiet.toml",
        "policy_text": {"quiet.toml": "[[rule]]\n"}, "grade": Grade.CHANGE, "began_ns": 17,
        "cpuid": [(1, 0, 2, 3, 4, 5)],
    }  # fmt: skip
    found, rows = read(trace(tmp_path / "a", made, **head))
    assert found.head == Head(kvmsr="0.1", image="made", **head)
    assert found.cut == ""
    same(rows, found.rules, made, RULES)


def test_an_empty_trace_has_a_head(tmp_path):
    found, rows = read(trace(tmp_path / "a", events(0)))
    assert (found.head.image, len(rows), found.cut) == ("made", 0, "")


@given(st.lists(st.text(max_size=30), min_size=1, max_size=12, unique=True), st.randoms())
def test_words_keep_their_meaning(words, chance):
    reader = WordReader(grows=True)
    for _ in range(2):
        numbers = np.array([chance.randrange(len(words)) for _ in range(50)])
        offsets, data = encode(numbers, [word.encode() for word in words])
        found = reader.read(offsets, data)
        assert [reader.words[number] for number in found] == [words[number] for number in numbers]


def test_words_that_are_not_known():
    with pytest.raises(ValueError, match="stop"):
        WordReader(["read", "write"]).read(*encode(np.array([0, 1]), [b"read", b"stop"]))
    with pytest.raises(ValueError, match="5,000 bytes"):
        WordReader(grows=True).read(*encode(np.array([0]), [b"x" * 5000]))


def test_a_very_long_rule_is_shortened(tmp_path):
    found, _ = read(trace(tmp_path / "a", events(9), ["x" * 5000] * 3))
    assert found.rules == ["x" * LONGEST_WORD]


def test_a_trace_is_read_up_to_the_cut(small):
    whole = small.read_bytes()
    _, wanted = read(small)
    counts = set()
    for size in range(len(whole) - 1, 0, -97):
        small.write_bytes(whole[:size])
        try:
            found, rows = read(small)
        except TraceError as error:
            assert str(small) in str(error)  # the head is cut, too
            continue
        assert found.cut
        assert len(rows) % ROWS == 0
        same(rows, found.rules, wanted[: len(rows)], found.rules if len(rows) else RULES)
        counts.add(len(rows))
    assert counts == {0, ROWS, 2 * ROWS, 3 * ROWS}


def test_what_is_written_is_in_the_file_at_once(tmp_path):
    with TraceWriter(tmp_path / "a", Head()) as writer:
        writer.write(events(5), RULES)
        found, rows = read(tmp_path / "a")
    assert (len(rows), found.cut) == (5, "its end is missing")


def arrow_stream(path, metadata):
    import nanoarrow as na
    import nanoarrow.ipc

    schema = na.c_schema(na.schema(na.Type.STRUCT, fields={"a": na.int32()}))
    column = na.c_array([1, 2], na.int32())
    batch = na.c_array_from_buffers(
        schema.modify(metadata=metadata), 2, [None], children=[column], null_count=0
    )
    with nanoarrow.ipc.StreamWriter.from_path(str(path)) as writer:
        writer.write_array(batch)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"[[rule]]\nmsr = 0x35\n", "this is not a trace of kvmsr"),
        (bytes(4096), "this is not a trace of kvmsr"),
        (b"\xff" * 4096, "this is not a trace of kvmsr"),
        (b"ARROW1\0\0" + bytes(100), "this is not a trace of kvmsr"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as raised:
        Trace(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_no_file(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        Trace(tmp_path / "none")
    with pytest.raises(TraceError, match="it is a directory"):
        Trace(tmp_path)
    with pytest.raises(TraceError, match="it is not a file"):
        Trace(Path("/dev/null"))


def test_other_arrow_files(tmp_path):
    path = tmp_path / "arrow"
    arrow_stream(path, {"other": "1"})
    with pytest.raises(TraceError, match="but another Arrow file"):
        Trace(path)
    arrow_stream(path, {"kvmsr": Head().encoded()})
    with pytest.raises(TraceError, match="it has other columns than it should"):
        Trace(path)
    arrow_stream(path, {"kvmsr": b"{"})
    with pytest.raises(TraceError, match="its head is damaged"):
        Trace(path)
    newer = json.loads(Head(kvmsr="9.0").encoded()) | {"schema": 9}
    arrow_stream(path, {"kvmsr": json.dumps(newer).encode()})
    with pytest.raises(TraceError, match=r"version 9, and this kvmsr reads version 1.*kvmsr 9\.0"):
        Trace(path)


def test_an_unknown_word_is_damage(small):
    small.write_bytes(small.read_bytes().replace(b"unknown", b"unknowm"))
    with pytest.raises(TraceError, match="column reason: unknowm"):
        read(small)


def mutate(data, chance):
    """Change some bytes of *data*."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        at = chance.randrange(len(made))
        kind = chance.randrange(4)
        if kind == 0:
            made[at] = chance.randrange(256)
        elif kind == 1:
            at &= ~7
            number = chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63])
            made[at : at + 8] = number.to_bytes(8, "little")
        elif kind == 2:
            del made[at : at + chance.randrange(1, 64)]
        else:
            made[at:at] = chance.randbytes(chance.randrange(1, 64))
        if not made:
            made = bytearray(b"\0")
    return bytes(made)


def test_mutated_traces(tmp_path):
    """A bounded run; KVMSR_FUZZ_ROUNDS makes it longer."""
    rounds = os.environ.get("KVMSR_FUZZ_ROUNDS", "1000")
    done = subprocess.run(
        [sys.executable, "-m", "tests.trace.file.fuzz", rounds, os.environ.get("KVMSR_SEED", "1")],
        capture_output=True, text=True, check=False, timeout=7200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    whole, cut, refused = map(int, done.stdout.split())
    assert whole + cut + refused == int(rounds)
    assert min(whole, cut, refused) > int(rounds) // 100


def test_a_full_disk(tmp_path):
    """What was written stays a trace."""
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from kvmsr.trace.file import *; from tests.trace.file.made import *;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "w = TraceWriter(Path(sys.argv[1]), Head());"
        "[w.write(events(100), RULES) for _ in range(20)]"
    )
    path = tmp_path / "full"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert f"{path}: the trace cannot be written: File too large" in done.stderr
    found, rows = read(path)
    assert found.cut == "its end is missing"
    assert 100 < len(rows) < 2000
    assert len(rows) % 100 == 0


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(TraceError, match="the trace cannot be written: No such file"):
        TraceWriter(tmp_path / "no" / "a", Head())


def test_two_writers(tmp_path):
    path = tmp_path / "a.arrows"
    with TraceWriter(path, Head()) as first:
        first.write(events(5), RULES)
        with pytest.raises(TraceError, match=r"a\.arrows: another run is writing its trace there"):
            TraceWriter(path, Head())
        first.write(events(5), RULES)
    with Trace(path) as trace:
        assert sum(map(len, trace.batches())) == 10
    with TraceWriter(path, Head()):
        pass
    with Trace(path) as trace:
        assert list(trace.batches()) == []


def test_a_fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    made = events(1000)
    writer = threading.Thread(target=trace, args=(path, made))
    writer.start()
    found, rows = read(path)
    writer.join()
    same(rows, found.rules, made, RULES)


def test_memory_does_not_grow_with_the_trace(tmp_path):
    path = trace(tmp_path / "long", events(4 * MAX_BATCH))
    script = (
        "import resource, sys; from pathlib import Path; from kvmsr.trace.file import Trace;"
        "print(sum(len(b) for b in Trace(Path(sys.argv[1])).batches()),"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    sizes = {}
    for count in (4, 16):
        with TraceWriter(path, Head()) as writer:
            for _ in range(count):
                writer.write(events(MAX_BATCH), RULES)
        rows, size = map(int, subprocess.check_output([sys.executable, "-c", script, path]).split())
        assert rows == count * MAX_BATCH
        sizes[count] = size
    assert sizes[16] < sizes[4] * 1.1 + resource.getpagesize() / 1024


def test_chance_is_repeatable():
    assert mutate(b"abcdefgh" * 9, random.Random(1)) == mutate(b"abcdefgh" * 9, random.Random(1))


def test_columns_that_are_missing(small, monkeypatch):
    """Found by tests.trace.file.fuzz: a list of columns that is cut short was accepted."""
    some = columns(rip=False, callers=0)[:8]
    monkeypatch.setattr("kvmsr.trace.file.writer.columns", lambda **_: some)
    trace(small, events(5))
    with pytest.raises(TraceError, match="it has other columns than it should"):
        Trace(small)


@pytest.mark.parametrize("left_out", ["caller_1", "caller_2", "guesses", "rip"])
def test_callers_that_are_missing(small, monkeypatch, left_out):
    some = [one for one in columns(rip=True, callers=3) if one[0] != left_out]
    monkeypatch.setattr("kvmsr.trace.file.writer.columns", lambda **_: some)
    trace(small, events(5, callers=3))
    with pytest.raises(TraceError, match="it has other columns than it should"):
        Trace(small)


def test_no_caller_is_left_out(small):
    """A file may say that there is a second caller, but no first one."""
    made = events(3, callers=3)
    made["n_callers"] = [3, 1, 3]
    made["callers"] = 7
    has = [[1, 1, 1], [1, 0, 1], [0, 1, 1]]

    def values_of(rows, name):
        found, had = values(rows, name)
        number = caller(name)
        return found, had if number is None else np.array([one[number] != 0 for one in has])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvmsr.trace.file.writer.values", values_of)
        trace(small, made)
    _, rows = read(small)
    assert rows["n_callers"].tolist() == [3, 1, 0]
    assert rows["callers"].tolist() == [[7, 7, 7, *[0] * 5], [7, *[0] * 7], [0] * 8]
