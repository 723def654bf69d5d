"""Other programs read a trace without kvmsr."""

import pytest

from kvmsr.trace.file import OPS, OUTCOMES
from kvmsr.trace.file.columns import VALUE
from tests.trace.file.made import RULES, events, trace


@pytest.fixture
def made():
    return events(3000, callers=2)


@pytest.fixture
def path(tmp_path, made):
    return trace(tmp_path / "a.arrows", made)


def check(columns, made):
    """Compare columns, as lists by name, with the rows that were written."""
    assert columns["index"] == made["index"].tolist()
    assert columns["op"] == [OPS[op] for op in made["op"]]
    assert columns["outcome"] == [OUTCOMES[one] for one in made["outcome"]]
    assert columns["rule"] == [RULES[rule] for rule in made["rule"]]
    has = (made["has"] & VALUE != 0).tolist()
    pairs = zip(made["value"].tolist(), has, strict=True)
    callers = zip(made["callers"][:, 1].tolist(), (made["n_callers"] > 1).tolist(), strict=True)
    assert columns["caller_2"] == [caller if there else None for caller, there in callers]
    assert columns["value"] == [value if there else None for value, there in pairs]


def table_of(path):
    ipc = pytest.importorskip("pyarrow.ipc", reason="needs pyarrow")
    with ipc.open_stream(str(path)) as stream:
        return stream.read_all()


def test_pyarrow(path, made):
    table = table_of(path)
    check(table.to_pydict(), made)
    assert b"kvmsr" in table.schema.metadata
    assert table["time"].cast("int64").to_pylist() == made["time_ns"].tolist()


def test_polars(path, made):
    polars = pytest.importorskip("polars", reason="needs polars")
    check(polars.read_ipc_stream(path).to_dict(as_series=False), made)


def test_pandas(path, made):
    pytest.importorskip("pandas", reason="needs pandas")
    frame = table_of(path).to_pandas()
    assert frame["op"].tolist() == [OPS[op] for op in made["op"]]
    faults = frame[frame["outcome"] == "fault"].groupby("index").size()
    assert faults.sum() == int((made["outcome"] == 2).sum())


def test_duckdb(path, made):
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb")
    events_ = table_of(path)  # noqa: F841 - duckdb finds it by its name
    rows = duckdb.sql("select op, count(*) from events_ group by op order by op").fetchall()
    who = duckdb.sql("select caller_1, count(*) from events_ group by caller_1").fetchall()
    assert dict(who)[None] == int((made["n_callers"] == 0).sum())
    assert rows == [("read", int((made["op"] == 0).sum())), ("write", int(made["op"].sum()))]
