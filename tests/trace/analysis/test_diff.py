"""Two traces are equal where their guests saw the same, and differ by what they saw."""

import numpy as np
import pytest

from kvmsr.trace.analysis.counting import CountingTrace
from kvmsr.trace.analysis.diff import Answer, diff
from kvmsr.trace.analysis.recorded import Recorded
from kvmsr.trace.file import LATENCY, Grade
from tests.trace.file.made import RULES, events, trace

FAULT = 2


@pytest.fixture
def compare(tmp_path):
    def run(a, b, *, exact=False, max_events=1 << 20, rules=RULES, grade=Grade.ALL):
        sides = []
        for name, made in (("a", a), ("b", b)):
            head = {"grade": grade if name == "b" else Grade.ALL}
            path = trace(tmp_path / name, made, rules if name == "b" else RULES, **head)
            with CountingTrace(path) as opened:
                sides.append(Recorded(opened, max_events))
        return diff(*sides, exact=exact)

    return run


def steady(count=400):
    """Return accesses whose values do not rise."""
    made = events(count)
    made["value"] %= 16
    return made


def of(found, index, op):
    return next(one for one in found.msrs if (one.index, one.op) == (index, op))


def test_times_processes_reasons_and_rules_do_not_count(compare):
    a, b = steady(), steady()
    b["time_ns"] += np.uint64(10**9)
    b["guest_ns"] *= np.uint64(2)
    b["latency_ns"] += 5
    b["pid"] = 1
    b["reason"] = 0
    found = compare(a, b, rules=["other.toml:1", "other.toml:2", "x"])
    assert not found
    assert (found.msrs, found.order, found.notes) == ([], [], [])
    assert found.compared == 10


def test_vcpus_may_be_interleaved_in_another_way(compare):
    a = steady()
    b = a[np.argsort(a["vcpu"], kind="stable")]
    assert not compare(a, b)


def test_the_first_value_that_differs(compare):
    a, b = steady(), steady()
    mine = np.flatnonzero((a["index"] == 0x1A0) & (a["op"] == 0) & (a["vcpu"] == 2))
    mine = mine[a["outcome"][mine] != FAULT]
    where = mine[3]
    before = a[:where]
    position = 1 + int(
        ((before["index"] == 0x1A0) & (before["op"] == 0) & (before["vcpu"] == 2)).sum()
    )
    a["value"][where], b["value"][where] = 77, 78
    b["value"][mine[5]] = 99
    found = compare(a, b)
    assert len(found.msrs) == 1
    one = of(found, 0x1A0, "read")
    assert (one.first.vcpu, one.first.position) == (2, position)
    assert (one.first.a, one.first.b) == (Answer("value", 77), Answer("value", 78))
    assert one.a == one.b
    assert found.order == []


def test_an_outcome_that_differs(compare):
    a, b = steady(), steady()
    where = np.flatnonzero((a["index"] == 0x35) & (a["op"] == 1) & (a["outcome"] == 1))[0]
    b["outcome"][where] = FAULT
    one = of(compare(a, b), 0x35, "write")
    assert (one.first.a.outcome, one.first.b.outcome) == ("done", "fault")
    assert one.a["done"] == one.b["done"] + 1


def test_an_msr_that_only_one_has(compare):
    a, b = steady(), steady()
    b = np.delete(b, np.flatnonzero(b["index"] == 0x35))
    found = compare(a, b)
    assert of(found, 0x35, "read").b == {}
    found = compare(b, a)
    assert of(found, 0x35, "read").a == {}
    assert {one.index for one in found.msrs} == {0x35}


def test_the_order(compare):
    a, b = steady(), steady()
    mine = np.flatnonzero(a["vcpu"] == 1)
    kinds = [(int(a["index"][at]), int(a["op"][at])) for at in mine]
    k = next(k for k in range(5, 50) if kinds[k] != kinds[k + 1])
    b[[mine[k], mine[k + 1]]] = b[[mine[k + 1], mine[k]]]
    found = compare(a, b)
    assert found.msrs == []
    (one,) = found.order
    assert (one.vcpu, one.position) == (1, k + 1)
    assert one.a == (("read", "write")[kinds[k][1]], kinds[k][0])
    assert one.b == (("read", "write")[kinds[k + 1][1]], kinds[k + 1][0])


def test_an_access_on_another_vcpu(compare):
    a, b = steady(), steady()
    b["vcpu"][-1] = 3 - b["vcpu"][-1]
    (one,) = compare(a, b).msrs
    assert one.moved
    assert one.a == one.b


def clock(start):
    made = events(40)
    made["index"], made["op"], made["outcome"] = 0x10, 0, 0
    made["has"] |= 1
    made["value"] = start + np.arange(40, dtype=np.uint64) * np.uint64(3)
    return made


def test_values_that_rise_are_those_of_a_clock(compare):
    found = compare(clock(100), clock(250))
    assert not found
    assert found.rising == [(0x10, "read")]
    assert of(compare(clock(100), clock(250), exact=True), 0x10, "read").first.position == 1
    falls = clock(100)
    falls["value"][20] = 0
    assert compare(falls, clock(250))
    faults = clock(250)
    faults["outcome"][3] = FAULT
    assert of(compare(clock(100), faults), 0x10, "read").first


def test_grades_that_differ(compare):
    a, b = steady(), steady()
    b["value"] += 1
    found = compare(a, b, grade=Grade.CHANGE)
    assert not found
    assert found.notes == ["values and order are not compared: the grades are all and change"]


def test_limits_are_said(compare):
    a = steady()
    found = compare(a, a, max_events=100)
    assert found.notes == [
        f"{name}: values and order are compared up to access 100 of 400" for name in "AB"
    ]
    a["has"][5] &= ~np.uint8(LATENCY)
    a["count"][5] = 1234
    assert compare(a, a).notes == [
        f"{name}: 1,234 accesses came too fast to be recorded, and were only counted"
        for name in "AB"
    ]


def test_more_msrs_than_are_compared(compare):
    a = steady(70_000)
    a["index"] = np.arange(70_000)
    a["op"] = 0
    notes = compare(a, a).notes
    assert notes == [f"{name}: 4,464 accesses to yet more MSRs are not compared" for name in "AB"]


def test_nothing_is_equal_to_nothing(compare):
    assert not compare(steady(0), steady(0))
    found = compare(steady(0), steady())
    assert len(found.msrs) == 10
    assert [one.a for one in found.order] == [None] * 4
