"""What other programs get, read with readers that we did not write."""

import csv
import io
import json

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from kvmsr.errors import HostError
from kvmsr.trace.analysis.export import FORMATS
from kvmsr.trace.analysis.parquet import write_parquet
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, Trace
from kvmsr.trace.file.columns import VALUE
from tests.trace.file.made import BEGAN_NS, RULES, events, trace

BEGUN_NS = BEGAN_NS - 10_000
_NAME = {"type": "string", "minLength": 1}
_TIME = {"type": "number", "minimum": 0}

# From "Trace Event Format", the documentation of the format: the object form, with complete events
# (X), instants (i) and metadata (M).
CHROME = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {"type": "array", "items": {
            "type": "object",
            "required": ["name", "ph", "pid", "tid"],
            "properties": {
                "name": _NAME, "cat": _NAME, "pid": {"type": "integer"},
                "tid": {"type": "integer"}, "args": {"type": "object"},
            },
            "oneOf": [
                {
                    "properties": {"ph": {"const": "X"}, "ts": _TIME, "dur": _TIME},
                    "required": ["ts", "dur", "cat"],
                },
                {
                    "properties": {
                        "ph": {"const": "i"}, "ts": _TIME, "s": {"enum": ["g", "p", "t"]},
                    },
                    "required": ["ts", "s"],
                },
                {
                    "properties": {
                        "ph": {"const": "M"}, "name": {"enum": ["process_name", "thread_name"]},
                        "args": {"required": ["name"], "properties": {"name": _NAME}},
                    },
                    "required": ["args"],
                },
            ],
        }},
    },
}  # fmt: skip


@pytest.fixture
def made():
    found = events(500, rip=True)
    found["vm"] = found["vcpu"] % 2
    found["count"][7], found["has"][7] = 12, VALUE
    return found


@pytest.fixture
def path(tmp_path, made):
    return trace(tmp_path / "a", made, ['=a,"b"\n', *RULES[1:]], began_ns=BEGUN_NS)


def exported(path, form):
    with Trace(path) as opened:
        return b"".join(FORMATS[form](opened)).decode()


def same(row, event):
    """Compare a row with text or numbers for cells."""
    get = {key: "" if value is None else str(value) for key, value in row.items()}
    for name in ("time_ns", "guest_ns", "pid", "vm", "vcpu", "count", "cpl"):
        assert get[name] == ("" if name == "cpl" and not event["has"] & 4 else str(event[name]))
    assert int(get["index"], 16) == event["index"]
    assert get["op"] == OPS[event["op"]]
    assert get["outcome"] == OUTCOMES[event["outcome"]]
    assert (int(get["value"], 16) if get["value"] else None) == (
        int(event["value"]) if event["has"] & VALUE else None
    )
    assert get["latency_ns"] == (str(event["latency_ns"]) if event["has"] & LATENCY else "")


def test_csv(path, made):
    rows = list(csv.DictReader(io.StringIO(exported(path, "csv"), newline="")))
    assert len(rows) == len(made)
    for row, event in zip(rows, made, strict=True):
        same(row, event)
    assert {row["rule"] for row in rows} == {'=a,"b"\n', *RULES[1:]}


def test_json_lines(path, made):
    rows = [json.loads(line) for line in exported(path, "jsonl").splitlines()]
    assert len(rows) == len(made)
    for row, event in zip(rows, made, strict=True):
        same(row, event)
    assert rows[0]["name"] == "IA32_TIME_STAMP_COUNTER"


def test_perfetto_is_what_its_documentation_says(path, made):
    found = json.loads(exported(path, "perfetto"))
    Draft202012Validator(CHROME).validate(found)
    tracks = {(one["pid"], one["tid"]) for one in found["traceEvents"] if one["ph"] == "M"}
    assert len(tracks) == 4
    names = {one["args"]["name"] for one in found["traceEvents"] if one["name"] == "thread_name"}
    assert names == {"vCPU 0", "vCPU 1", "vCPU 2", "vCPU 3"}
    slices = [one for one in found["traceEvents"] if one["ph"] == "X"]
    timed = made[made["has"] & LATENCY != 0]
    assert len(slices) == len(timed)
    for one, event in zip(slices, timed, strict=True):
        assert one["pid"] == event["vm"] + 1
        assert (one["pid"], one["tid"]) in tracks
        assert round(one["ts"] * 1000) == event["time_ns"] - event["latency_ns"] - BEGUN_NS
        assert round(one["dur"] * 1000) == event["latency_ns"]
    (counted,) = [one for one in found["traceEvents"] if one["ph"] == "i"]
    assert counted["name"].endswith(": 12 accesses, only counted")


def test_the_schema_refuses_what_is_wrong():
    good = {"ph": "X", "name": "a", "cat": "b", "pid": 1, "tid": 1, "ts": 1, "dur": 2}
    schema = Draft202012Validator(CHROME)
    assert schema.is_valid({"traceEvents": [good]})
    for wrong in ({"dur": -1}, {"ph": "Y"}, {"name": ""}, {"tid": "1"}):
        assert not schema.is_valid({"traceEvents": [good | wrong]})


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_trace(tmp_path, form):
    text = exported(trace(tmp_path / "a", events(0)), form)
    if form == "perfetto":
        assert json.loads(text)["traceEvents"] == []
    else:
        assert len(text.splitlines()) == (form == "csv")


def test_parquet(tmp_path, path, made):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    target = tmp_path / "a.parquet"
    with Trace(path) as opened, target.open("wb") as file:
        write_parquet(opened, file)
    table = parquet.read_table(target)
    assert table.num_rows == len(made)
    assert np.array_equal(table["index"].to_numpy(), made["index"])
    assert table["op"].to_pylist() == [OPS[op] for op in made["op"]]
    values = table["value"].to_pylist()
    assert [value is not None for value in values] == [bool(h & VALUE) for h in made["has"]]
    assert b"kvmsr" in table.schema.metadata


def test_parquet_without_pyarrow(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with Trace(path) as opened, pytest.raises(HostError, match=r"pip install 'kvmsr\[parquet\]'"):
        write_parquet(opened, io.BytesIO())
