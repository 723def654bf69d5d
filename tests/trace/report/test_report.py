"""What a report says: its numbers against the trace's rows, its rules against the policy's text."""

import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from kvmsr.errors import TraceError, UsageError
from kvmsr.policy.file import parse_policy
from kvmsr.trace.file import EVENT, OUTCOMES, Trace
from kvmsr.trace.file.columns import VALUE
from kvmsr.trace.report import write_report
from kvmsr.trace.report.collect import collect
from kvmsr.trace.report.sample import MAX_EVENTS, MAX_FAULTS
from tests.trace.file.made import events, trace
from tests.trace.report.conftest import DROPPED, FIRED, NEVER, POLICY, RULES, boot

FAULT = OUTCOMES.index("fault")
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*7 }}\u202e\x1b[2J'


class Page(HTMLParser):
    """A page: its data, and its rows as lists of texts, by section."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.pre = {}, [], []
        self._section = self._cell = None
        self.text = text
        self.feed(text)
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self._section = dict(attributes).get("id", "")
        elif tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        elif tag in ("td", "th"):
            self.rows[self._section][-1].append("")
            self._cell = self.rows[self._section][-1]
        elif tag == "pre":
            self._cell = self.pre
            self.pre.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th", "pre"):
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell[-1] += data


def report(tmp_path, *paths):
    write_report(paths, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text())


def rows_of(path):
    """Return the rows, with the numbers of their rules as in RULES."""
    with Trace(path) as found:
        rows = np.concatenate([np.zeros(0, EVENT), *found.batches()])
    rows["rule"] = [RULES.index(found.rules[rule]) for rule in rows["rule"]]
    return rows


def number(text):
    return 0 if text == "·" else int(text.replace(",", ""))


def test_the_table_counts_what_the_trace_has(tmp_path):
    path = boot(tmp_path / "a")
    page, rows = report(tmp_path, path), rows_of(path)
    table = [[cell.strip() for cell in row] for row in page.rows["msrs"][1:]]
    assert [int(row[0], 16) for row in table] == sorted(set(rows["index"].tolist()))
    for index, name, reads, writes, faults, first, last, _ in table:
        own = rows[rows["index"] == int(index, 16)]
        assert (name, number(reads), number(writes), number(faults)) == (
            {0x10: "IA32_TIME_STAMP_COUNTER", 0x35: "MSR_CORE_THREAD_COUNT"}.get(
                int(index, 16), name
            ),
            own[own["op"] == 0]["count"].sum(), own[own["op"] == 1]["count"].sum(),
            own[own["outcome"] == FAULT]["count"].sum(),
        )  # fmt: skip
        values = own[own["has"] & VALUE != 0]["value"]
        assert (int(first, 16), int(last, 16)) == (values[0], values[-1])


def test_the_timeline_has_the_accesses(tmp_path):
    path = boot(tmp_path / "a", 3000)
    page, rows = report(tmp_path, path), rows_of(path)
    [got] = page.data["traces"]
    indices = [int(page.data["msrs"][msr]["index"], 16) for msr in got["msr"]]
    assert indices == rows["index"].tolist()
    assert got["kind"] == (rows["op"] + 2 * rows["outcome"]).tolist()
    assert got["time"] == (rows["time_ns"] - rows["time_ns"][0] + got["time"][0]).tolist()
    values = [int(got["values"][one], 16) if one >= 0 else None for one in got["value"]]
    has = (rows["has"] & VALUE) != 0
    assert values == [v if h else None for v, h in zip(rows["value"].tolist(), has, strict=True)]
    assert [int(got["rips"][one], 16) for one in got["rip"]] == rows["rip"].tolist()
    assert got["counts"] == {str(len(rows) - 1): DROPPED}
    assert sum(got["bins"]) == len(rows) - 1


def test_dropped_accesses_are_said(tmp_path):
    page = report(tmp_path, boot(tmp_path / "a"))
    assert f"{DROPPED} accesses were dropped" in page.text
    counted = report(tmp_path, boot(tmp_path / "b", grade="count"))
    assert f"{DROPPED} accesses were only counted, as the trace has the grade “count”" in (
        counted.text
    )


def test_a_trace_that_is_cut_says_so(tmp_path):
    path = boot(tmp_path / "a", 300)
    path.write_bytes(path.read_bytes()[:-8])
    assert "The trace is incomplete: its end is missing." in report(tmp_path, path).text


def test_rules_that_fired_and_rules_that_never_did(tmp_path):
    path = boot(tmp_path / "a")
    page, rows = report(tmp_path, path), rows_of(path)
    lines = {int(line): hits for hits, line, _ in page.rows["policy"][1 : 1 + POLICY.count("\n")]}
    fired, left = (int(rows[rows["rule"] == rule]["count"].sum()) for rule in (0, 1))
    assert lines[int(FIRED.split(":")[1])] == f"{fired:,}"
    assert lines[int(NEVER.split(":")[1])] == "never"
    assert lines[POLICY.splitlines().index('unknown = "fault"') + 1] == f"{left:,}"
    assert "2 of 3 rules decided an access; 1 never did." in page.text
    assert page.rows["policy"][-1][0] == "C handler"


def test_a_preset_is_shown(tmp_path):
    path = boot(tmp_path / "a", 100, policy="preset:linux", policy_text={})
    assert "preset:linux" in report(tmp_path, path).text
    assert "never" in [row[0] for row in report(tmp_path, path).rows["policy"]]


def test_the_policy_of_a_trace_runs_no_code_and_opens_no_file(tmp_path):
    (tmp_path / "secret.toml").write_text("# secret")
    evil = f'[policy]\nextends = ["{tmp_path}/secret.toml"]\n[[rule]]\nmsr = 1\n' + (
        'read = { python = "antigravity:fly" }\n'
    )
    path = boot(tmp_path / "a", 100, policy_text={"/a/quiet.toml": evil})
    page = report(tmp_path, path)
    assert "# secret" not in page.text
    assert "antigravity:fly" in unescape(page.text)
    import sys

    assert "antigravity" not in sys.modules


def test_faults_and_who_caused_them(tmp_path):
    path = boot(tmp_path / "a")
    page, rows = report(tmp_path, path), rows_of(path)
    faults = page.rows["faults"][1:]
    assert sum(number(row[4]) for row in faults) == rows[rows["outcome"] == FAULT]["count"].sum()
    rips = {f"{rip:#x}" for rip in rows[rows["outcome"] == FAULT]["rip"].tolist()}
    for row in faults:
        assert set(re.findall("0x[0-9a-f]+", row[5])) <= rips
        assert "×" in row[5]


def test_suggested_rules_are_a_policy(tmp_path):
    """Put after the rules that are there, they decide all that was left to the defaults."""
    path = boot(tmp_path / "a")
    page, rows = report(tmp_path, path), rows_of(path)
    policy = parse_policy("\n".join(page.pre))
    asked = {
        (row["index"], op)
        for row in rows[rows["rule"] == 1]
        for op in ("read", "write")
        if row["op"] == ("read", "write").index(op)
    }
    assert len(asked) == 10
    for index, op in asked:
        assert any(
            first <= index <= last and rule.action(op) is not None
            for rule in policy.rules
            for first, last in rule.msrs
        )


def test_nothing_to_suggest(tmp_path):
    page = report(tmp_path, boot(tmp_path / "a", rules=["a:1", "b:2", "c:3"]))
    assert not page.pre
    assert "Nothing is left to its defaults" in page.text


def test_two_traces_are_compared(tmp_path):
    one = boot(tmp_path / "a", 500)
    made = rows_of(one)
    made = made[made["index"] != 0x8B]
    value = made["index"] == 0x35
    made["value"][value & (made["has"] & VALUE != 0)] ^= 0x100
    other = trace(tmp_path / "b", made, RULES)
    page = report(tmp_path, one, other)
    differs = {row[0]: row[2].split() for row in page.rows["msrs"][1:]}
    assert differs["0x8b"] == ["only", "in", "A"]
    assert differs["0x35"] == ["value"]
    assert differs["0x10"] == ["same"]
    assert [len(found["time"]) for found in page.data["traces"]] == [500, len(made)]


def test_a_hostile_trace_stays_text(tmp_path):
    made = events(50, rip=True)
    path = trace(
        tmp_path / "a", made, [HOSTILE, "defaults.unknown" + HOSTILE, "defaults." + HOSTILE],
        backend=HOSTILE, policy=HOSTILE, command=HOSTILE, host={HOSTILE: HOSTILE},
        policy_text={HOSTILE: f"# {HOSTILE}\n[[rule]]\nmsr = 1\nread = 2\n"},
    )  # fmt: skip
    page = report(tmp_path, path)
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("script") == 2
    assert "img" not in kinds
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    assert "{{ 7*7 }}" in unescape(page.text)
    assert HOSTILE[:20] in page.data["traces"][0]["rules"][0]


def test_the_page_asks_for_nothing(tmp_path):
    page = report(tmp_path, boot(tmp_path / "a", 100))
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert "default-src 'none'" in page.text


def test_a_boot_fits(tmp_path):
    assert write_report([boot(tmp_path / "a", 16_000)], tmp_path / "page.html") < 2_000_000


def test_a_long_trace_is_sampled(tmp_path):
    path = trace(tmp_path / "a", events(200_000))
    size = write_report([path], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert size < 2_500_000
    assert MAX_EVENTS / 2 < len(page.data["traces"][0]["time"]) < MAX_EVENTS + MAX_FAULTS + 10
    assert re.search(r"shows [\d,]+ of 200,000 recorded rows: one in 16,", page.text)
    assert sum(number(row[2]) + number(row[3]) for row in page.rows["msrs"][1:]) == 200_000


def test_more_msrs_than_there_is_room_for(tmp_path):
    made = events(3000)
    made["index"] = np.arange(3000)
    size = write_report([trace(tmp_path / "a", made)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "The table leaves out 2,500 accesses to 2,500 other MSRs." in text
    assert size < 2_000_000


@pytest.mark.parametrize("hostile", ["times", "counts", "rules"])
def test_numbers_at_their_limits(tmp_path, hostile):
    made, rules = events(5000), RULES
    if hostile == "times":
        made["time_ns"] = np.random.default_rng(1).integers(0, 1 << 63, 5000, np.uint64) * 2
    elif hostile == "counts":
        made["count"] = 0xFFFFFFFF
        made["latency_ns"] = np.where(made["latency_ns"] % 2, 0, 0xFFFFFFFF)
    else:
        rules = [f"{'x' * 4000}{number}" for number in range(3000)]
        made["rule"] = np.arange(5000) % 3000
    assert write_report([trace(tmp_path / "a", made, rules)], tmp_path / "page.html") < 4_000_000


def test_an_empty_trace(tmp_path):
    page = report(tmp_path, trace(tmp_path / "a", events(0)))
    assert "No access was recorded." in page.text
    assert page.data["msrs"] == []


def test_values_are_the_first_and_the_last_by_time(tmp_path):
    made = events(4)
    made["index"], made["op"], made["outcome"] = 0x10, 1, 1
    made["rule"] = made["reason"] = 0
    made["has"] |= VALUE
    made["value"] = [1, 2, 3, 4]
    made["time_ns"] = [30, 10, 40, 20]
    [kind] = collect(trace(tmp_path / "a", made))
    assert (kind.first, kind.last) == (2, 3)


def test_nothing_half_written(tmp_path):
    path = boot(tmp_path / "a", 300)
    page = tmp_path / "report.html"
    page.write_text("before")
    path.write_bytes(path.read_bytes().replace(b"unknown", b"unknowm"))
    with pytest.raises(TraceError, match="unknowm"):
        write_report([path], page)
    assert page.read_text() == "before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "report.html"]


def test_places_that_cannot_be_written(tmp_path):
    path = boot(tmp_path / "a", 10)
    for output, message in (
        (path, "that is the trace itself"),
        (tmp_path, "it is not a regular file"),
        (tmp_path / "no" / "page.html", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            write_report([path], output)
    assert collect(path).accesses
