"""What KVM does for the host in the place of a guest: all of it is there, and documented."""

import tomllib

import pytest

from kvmsr.msr import catalog, handled
from kvmsr.msr.as_host import REFUSED, as_host, never_unknown
from tests.conftest import ROOT

DATA = ROOT / "src/kvmsr/msr/data/as_host.toml"
WORDS = {"": "seen", REFUSED: "seen, as KVM refuses them", None: "–"}


def test_there_is_one_row_for_each_msr_and_direction_that_kvm_handles():
    compared = {}
    for row in as_host():
        for index in range(row.first, row.last + 1):
            for op, different in (("reads", row.reads), ("writes", row.writes)):
                if different is not None:
                    assert (index, op) not in compared
                    compared[index, op] = different
    expected = {
        (index, op)
        for one in handled()
        for index in range(one.first, one.last + 1)
        for op in ("reads", "writes")
        if getattr(one, op)
    }
    assert set(compared) == expected


def test_each_row_names_where_the_fact_is_from():
    for row in tomllib.loads(DATA.read_text())["row"]:
        assert row["from"]
        assert set(row) <= {"first", "last", "step", "reads", "writes", "refuses", "cpu", "from"}
        assert row["first"] <= row["last"]


@pytest.mark.parametrize("index", [0x20F, 0x210, 0x26F, 0x2FF, 0x400, 0x47F, 0xC0010140])
def test_what_every_kvm_knows_is_never_unknown(index):
    assert any(first <= index <= last for first, last in never_unknown())


@pytest.mark.parametrize("index", [0x270, 0x3A, 0x277, 0x480, 0xC0010114])
def test_what_only_some_know_may_be(index):
    assert not any(first <= index <= last for first, last in never_unknown())


def table():
    """Return the table of the documentation: what is not observed, and why."""
    alike = {}
    for row in as_host():
        if {row.reads, row.writes} - {"", REFUSED, None}:
            alike.setdefault((row.reads, row.writes), []).append(row)
    lines = ["| MSRs | reads | writes |", "|---|---|---|"]
    for (reads, writes), rows in alike.items():
        said = [name(row) for row in rows]
        some = said if len(said) < 16 else [*said[:2], "…", said[-1]]
        lines.append(
            f"| {', '.join(some)} | {WORDS.get(reads, reads)} | {WORDS.get(writes, writes)} |"
        )
    return "\n".join(lines)


def name(row):
    if row.first == row.last:
        return f"{row.first:#x} {catalog().name(row.first)}"
    within = next(one for one in handled() if one.first <= row.first <= one.last)
    whole = (within.first, within.last) == (row.first, row.last)
    what = within.what if whole else f"{catalog().name(row.first)} …"
    return f"{row.first:#x}-{row.last:#x} {what}"


def test_the_documentation_has_them_all():
    assert table() in (ROOT / "docs/howto/observe.md").read_text(), table()
