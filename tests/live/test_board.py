"""Rates, histories and lines from what a run answers again and again."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.live.board import Board, Sort
from kvmsr.live.columns import columns, short
from kvmsr.live.history import MINUTE, History, sparkline
from kvmsr.live.poller import Poller

ADDED = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 1_000_000)), max_size=60
)  # seconds since the last one, and a count


def row(index, op="read", count=1, *, rule="p.toml:1", fault=0, value="0x5", reason="unknown"):
    return {
        "index": f"{index:#x}", "name": "", "op": op, "count": count, "reason": reason,
        "rule": rule, "outcomes": {"value": count - fault, "done": 0, "fault": fault, "stop": 0},
        "first_value": value, "last_value": value, "first_rip": "0x1000",
    }  # fmt: skip


@given(ADDED, st.integers(1, MINUTE))
def test_bars_have_what_was_added_in_the_last_minute(added, width):
    history, now, kept = History(100.0), 100.0, []
    for seconds, count in added:
        now += seconds
        history.add(now, count)
        kept.append((int(now), count))
    bars = history.bars(now, width)
    assert len(bars) == width
    assert sum(bars) == sum(count for second, count in kept if second > int(now) - MINUTE)
    assert sum(history.bars(now + MINUTE, width)) == 0
    assert len(sparkline(bars)) == width


@given(ADDED)
def test_a_rate_is_what_was_added_in_the_last_two_seconds(added):
    history, now, kept = History(100.0), 100.0, []
    for seconds, count in added:
        now += seconds
        history.add(now, count)
        kept.append((now, count))
    now += 0.5
    expected = sum(count for when, count in kept if when > now - 2) / min(2, now - 100)
    assert history.rate(now) == pytest.approx(expected)
    assert history.rate(now + 2) == 0


@given(st.lists(st.integers(0, 1000), max_size=30), st.data())
def test_it_does_not_matter_how_often_a_run_is_asked(counts, data):
    """The same accesses, told in other portions within a second, make the same bars."""
    one, other = History(0.0), History(0.0)
    for second, count in enumerate(counts):
        one.add(second + 0.5, count)
        part = data.draw(st.integers(0, count))
        other.add(second + 0.2, part)
        other.add(second + 0.9, count - part)
    now = len(counts)
    assert one.bars(now, 20) == other.bars(now, 20)


def test_a_run_that_takes_long_to_answer_is_left_alone():
    asked = []

    class Slow:
        def watch(self, msr):
            asked.append((time.monotonic(), msr))
            time.sleep(0.1)
            return {}

    poller = Poller(Slow(), lambda answer: None, lambda why: None)
    time.sleep(1.0)
    assert len(asked) == 1  # ten times as long as that took
    poller.msr = 5
    poller.wake()
    time.sleep(0.1)
    poller.close()
    assert [msr for _, msr in asked] == [None, 5]


def test_a_sparkline():
    assert sparkline([0, 1, 4, 8]) == "·▁▄█"
    assert sparkline([0, 0]) == "··"
    assert sparkline([]) == ""


def test_what_happened_before_the_first_answer_has_no_rate():
    board = Board(10.0)
    board.take([row(1, count=1000)], 10.0)
    assert board.lines[1].count == 1000
    assert board.lines[1].history.rate(10.4) == board.history.rate(10.4) == 0
    board.take([row(1, count=1100), row(2, count=60)], 12.0)
    assert (board.lines[1].history.rate(12.0), board.history.rate(12.0)) == (50, 80)


def test_rules_and_directions_of_an_msr_add_up():
    board = Board(0.0)
    board.take([row(1, count=5), row(1, "write", 3, value="0x7", fault=1)], 1.0)
    board.take([row(1, count=2, rule="live 0x1", value="0x9")], 2.0)
    line = board.lines[1]
    assert (line.reads, line.writes, line.faults, line.count) == (7, 3, 1, 10)
    assert (line.last_value, line.rule) == (9, "live 0x1")
    assert line.values == {"read": 9, "write": 7}


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["read", "write"]), st.integers(1, 50)),
        max_size=40,
    )
)
def test_lines_have_the_sums_of_all_rows(steps):
    board, counts = Board(0.0), {}
    board.take([], 0.0)
    for now, (index, op, more) in enumerate(steps, 1):
        counts[index, op] = counts.get((index, op), 0) + more
        board.take([row(index, op, counts[index, op])], float(now))
    for index, line in board.lines.items():
        assert line.reads == counts.get((index, "read"), 0)
        assert line.writes == counts.get((index, "write"), 0)
    for by in Sort:
        assert len(board.sorted(by, "", 0.0)) == len(board.lines)


def test_order_and_filter():
    board = Board(0.0)
    board.take([], 0.0)
    rows = [row(3, count=9), row(1, count=4, fault=4), row(2, count=7, rule="other.toml:2")]
    board.take(rows, 1.0)
    board.take([row(2, count=8, rule="other.toml:2")], 6.0)

    def order(by, words=""):
        return [line.index for line in board.sorted(by, words, 6.0)]

    assert order(Sort.RATE) == [2, 1, 3]
    assert order(Sort.COUNT) == [3, 2, 1]
    assert order(Sort.INDEX) == [1, 2, 3]
    assert order(Sort.FAULTS) == [1, 2, 3]
    assert order(Sort.INDEX, "OTHER unknown") == [2]
    assert order(Sort.INDEX, "0x3") == [3]
    assert order(Sort.INDEX, "0x3 other") == []


def test_what_a_policy_or_a_vmm_calls_things_is_text():
    board = Board(0.0)
    board.take([row(1, rule="\x1b[2J\u202e\n[red]")], 0.0)
    assert board.lines[1].rule == r"\x1b[2J\u202e\n[red]"


@given(
    st.integers(1, 300),
    st.fixed_dictionaries(dict.fromkeys(("index", "name", "value", "rule"), st.integers(0, 60))),
)
def test_columns_fit_and_have_the_index(width, longest):
    found = columns(width, longest)
    assert found[0].title == "index"
    assert sum(column.width for column in found) + len(found) - 1 <= width
    board = Board(0.0)
    board.take([row(0xFFFFFFFF, value="0xffffffffffffffff")], 0.0)
    for column in found:
        assert len(column.text(board.lines[0xFFFFFFFF], 0.0)) == column.width


@given(st.one_of(st.integers(0, 10**14), st.floats(0, 1e14)))
def test_short_numbers_are_short_and_about_right(number):
    text = short(number)
    assert len(text) <= 6
    size = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * size == pytest.approx(number, rel=0.01, abs=0.06)
