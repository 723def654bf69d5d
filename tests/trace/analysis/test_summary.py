"""The summary of a trace, compared with one that is made event by event."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from kvmsr.trace.analysis import summarise
from kvmsr.trace.analysis.latency import Latencies
from kvmsr.trace.file import LATENCY, OPS, OUTCOMES, REASONS, Grade, Head, Trace, TraceWriter
from kvmsr.trace.file.columns import RIP, VALUE
from tests.trace.file.made import RULES, events, trace


def summary_of(path, **options):
    with Trace(path) as opened:
        return summarise(opened, **options)


def written(path, parts, **head):
    with TraceWriter(path, Head(**head), rip=True) as writer:
        for part in parts:
            writer.write(part, RULES)
    return path


def key_of(event, by_vcpu):
    who = (int(event["vm"]), int(event["vcpu"])) if by_vcpu else (None, None)
    op, reason = OPS[event["op"]], REASONS[event["reason"]]
    return (int(event["index"]), op, reason, RULES[event["rule"]], *who)


def one_by_one(made, by_vcpu):
    """Return what the rows should be."""
    groups = defaultdict(list)
    for event in sorted(made, key=lambda event: event["time_ns"]):
        groups[key_of(event, by_vcpu)].append(event)
    rows = {}
    for key, group in groups.items():
        outcomes, rips = Counter(), Counter()
        for event in group:
            outcomes[OUTCOMES[event["outcome"]]] += int(event["count"])
            rips[int(event["rip"])] += int(event["count"])
        values = [int(event["value"]) for event in group if event["has"] & VALUE]
        rows[key] = {
            "outcomes": {name: outcomes[name] for name in OUTCOMES},
            "values": (values[0], values[-1]) if values else (None, None),
            "times": (int(group[0]["time_ns"]), int(group[-1]["time_ns"])),
            "guest": (int(group[0]["guest_ns"]), int(group[-1]["guest_ns"])),
            "counted": sum(int(e["count"]) for e in group if not e["has"] & LATENCY),
            "most": max(rips.values()),
            "latencies": sorted(int(e["latency_ns"]) for e in group if e["has"] & LATENCY),
        }
    return rows


@pytest.mark.parametrize("by_vcpu", [False, True])
def test_rows_are_those_counted_one_by_one(tmp_path, by_vcpu):
    made = events(4000, rip=True)
    made["rip"] %= 7
    made["vm"] = made["vcpu"] % 2
    made["count"][::10] = 1000
    made["has"][::10] &= ~np.uint8(LATENCY)
    made = np.random.default_rng(3).permutation(made)  # the rings of vCPUs are emptied in turn
    path = written(tmp_path / "a", np.array_split(made, 7))
    summary = summary_of(path, by_vcpu=by_vcpu)
    wanted = one_by_one(made, by_vcpu)
    found = summary.rows()
    assert len(found) == len(wanted)
    for row in found:
        want = wanted[row.index, row.op, row.reason, row.rule, row.vm, row.vcpu]
        assert row.outcomes == want["outcomes"]
        assert row.counted == want["counted"]
        assert (row.first_value, row.last_value) == want["values"]
        assert (row.first.time_ns, row.last.time_ns) == want["times"]
        assert (row.first.guest_ns, row.last.guest_ns) == want["guest"]
        assert row.paths[0][1] == want["most"]
        for percent, latency in (row.latency or {}).items():
            exact = want["latencies"][-(-len(want["latencies"]) * percent // 100) - 1]
            assert abs(latency - exact) <= exact * 0.0313 + 1
    assert summary.totals() == {
        "reads": int(made["count"][made["op"] == 0].sum()),
        "writes": int(made["count"][made["op"] == 1].sum()),
        "faults": int(made["count"][made["outcome"] == 2].sum()),
    }
    assert summary.events == len(made)


@pytest.mark.parametrize("latency", [0, 1, 15, 16, 17, 31, 32, 33, 1000, 10**6, 2**32 - 1])
def test_a_latency_is_right_to_3_percent(latency):
    latencies = Latencies(3)
    latencies.add(np.array([2]), np.array([latency], np.uint32))
    assert latencies.percentiles([0]) is None
    found = latencies.percentiles([2])
    assert abs(found[50] - latency) <= latency * 0.0313
    assert latencies.percentiles() == found


def test_more_msrs_than_rows(tmp_path):
    made = events(20_000)
    made["index"] = np.arange(20_000) % 10_000
    made["op"], made["reason"], made["rule"] = 0, 0, 0
    summary = summary_of(trace(tmp_path / "a", made))
    assert len(summary.rows()) == 4096
    assert summary.rest() == "… and 11,808 accesses to 5,904 other MSRs"
    assert summary.totals()["reads"] == 20_000
    assert summary.as_dict()["other"] == {"accesses": 11_808, "msrs": 5904, "exact": True}


def test_more_rules_than_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr("kvmsr.trace.analysis.summary._MAX_KINDS", 2)
    made = events(100)
    made["op"], made["reason"] = 0, 0
    summary = summary_of(trace(tmp_path / "a", made))
    assert {row.rule for row in summary.rows()} < set(RULES)
    assert sum(row.count for row in [*summary.rows(), *summary.others()]) == 100


@pytest.mark.parametrize(("grade", "dropped"), [(Grade.ALL, 30), (Grade.COUNT, 0)])
def test_what_came_too_fast_is_counted(tmp_path, grade, dropped):
    made = events(3)
    made["count"], made["has"] = 10, VALUE
    summary = summary_of(trace(tmp_path / "a", made, grade=grade))
    assert summary.dropped == dropped
    assert summary.counted == 30
    assert summary.latency() is None


def test_no_rip_no_rips(tmp_path):
    made = events(10)
    assert not (made["has"] & RIP).any()
    assert all(row.paths == () for row in summary_of(trace(tmp_path / "a", made)).rows())
    assert summary_of(trace(tmp_path / "a", made[:0])).rows() == []
