"""The summary: what it counts, and that a guest cannot make it grow without limit."""

import sys
import threading
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from kvmsr.dispatch import Outcome, Verdict
from kvmsr.policy import Access, Op, Reason
from kvmsr.trace import IndexCount, Summary


def read(index, reason=Reason.UNKNOWN):
    return Access(0, Op.READ, index, 0, reason)


def write(index, value):
    return Access(0, Op.WRITE, index, value, Reason.FILTER)


def test_rows_are_as_the_contract_says():
    rips = iter([0xFFFFFFFF81001234, 2, 3])
    summary = Summary(rip=lambda: next(rips))
    summary.record(read(0x35), Outcome(Verdict.VALUE, "defaults.unknown", 0x20004))
    for value in (1, 2):
        summary.record(read(0x35), Outcome(Verdict.VALUE, "defaults.unknown", value))
    summary.record(write(0x277, 7), Outcome(Verdict.DONE, "p.toml:3"))
    summary.record(write(0x277, 8), Outcome(Verdict.FAULT, "p.toml:3"))
    summary.record(read(0x10000), Outcome(Verdict.FAULT, "defaults.unknown"))
    first, second, third = summary.as_dict()["accesses"]
    assert first == {
        "index": "0x35",
        "name": "MSR_CORE_THREAD_COUNT",
        "op": "read",
        "count": 3,
        "reason": "unknown",
        "rule": "defaults.unknown",
        "outcomes": {"value": 3, "done": 0, "fault": 0, "stop": 0},
        "first_value": "0x20004",
        "last_value": "0x2",
        "first_rip": "0xffffffff81001234",
    }
    assert second["outcomes"] == {"value": 0, "done": 1, "fault": 1, "stop": 0}
    assert (second["first_value"], second["last_value"]) == ("0x7", "0x8")
    assert third["name"] == ""
    assert third["first_value"] is None
    assert summary.totals() == {"reads": 4, "writes": 2, "faults": 2}
    assert "other" not in summary.as_dict()


def test_a_stopped_access_is_counted_without_an_outcome():
    summary = Summary()
    summary.record(read(1), Outcome(Verdict.STOP, "p.toml:1"))
    (row,) = summary
    assert (row.count, row.values, row.dones, row.faults) == (1, 0, 0, 0)
    summary.record(write(1, 5), Outcome(Verdict.STOP, "p.toml:1"))
    assert [r.last_value for r in summary] == [None, 5]


def test_a_million_different_msrs_are_counted_in_little_memory():
    tracemalloc.start()
    summary = Summary()
    outcome = Outcome(Verdict.FAULT, "defaults.unknown")
    for index in range(1_000_000):
        summary.record(read(index), outcome)
    for index in range(500_000, 510_000):
        summary.record(read(index), outcome)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(summary) == 4096
    assert summary.rest() == "… and 1,005,904 accesses to 995,904 other MSRs"
    assert summary.totals() == {"reads": 1_010_000, "writes": 0, "faults": 1_010_000}
    assert summary.as_dict()["other"] == {"accesses": 1005904, "msrs": 995904, "exact": True}
    assert peak < 16 << 20


indices = st.integers(0, (1 << 32) - 1)


@given(st.lists(indices | st.integers(0, 40)), st.lists(indices | st.integers(0, 40)))
def test_index_count_is_a_set(left, right):
    one, two = IndexCount(), IndexCount()
    for index in left:
        one.add(index)
    for index in right:
        two.add(index)
    assert len(one) == len(set(left))
    one.update(two)
    assert len(one) == len({*left, *right})
    assert one.exact


def test_index_count_gives_up_exactness_and_says_so():
    summary = Summary(max_rows=0)
    for page in range(5000):
        summary.record(read(page << 16), Outcome(Verdict.FAULT, ""))
    assert summary.rest() == "… and 5,000 accesses to at least 4,096 other MSRs"
    assert not summary.as_dict()["other"]["exact"]


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(Op),
        st.integers(0, 4),
        st.sampled_from([Verdict.VALUE, Verdict.DONE, Verdict.FAULT]),
        st.integers(0, 9),
    )
)


@given(steps, st.sampled_from([3, 100]))
def test_the_sum_of_several_vcpus_is_what_one_would_have_counted(steps, max_rows):
    one = Summary(100)
    several = [Summary(max_rows) for _ in range(3)]
    # One vCPU after the other, so first and last value are the same in both.
    for vcpu, op, index, verdict, value in sorted(steps, key=lambda step: step[0]):
        if (op is Op.READ) == (verdict is Verdict.DONE):
            continue  # a read returns a value, a write is done
        access = Access(vcpu, op, index, value if op is Op.WRITE else 0, Reason.UNKNOWN)
        outcome = Outcome(verdict, "r", value)
        for summary in (one, several[vcpu]):
            summary.record(access, outcome)
    merged = Summary.merged(several, max_rows)
    assert merged.totals() == one.totals()
    if max_rows == 100:
        assert merged.as_dict() == one.as_dict()


def test_where_the_guest_is_gets_asked_once_a_row():
    asked = 0

    def rip():
        nonlocal asked
        asked += 1
        return 0x1000

    summary = Summary(max_rows=2, rip=rip)
    for index in range(100):
        summary.record(read(index), Outcome(Verdict.FAULT, "rule"))
    assert asked == 3  # two rows, and once for all others


def test_a_sum_may_be_drawn_while_a_vcpu_counts():
    summary, over, broken = Summary(max_rows=500), threading.Event(), []

    def count():
        index = 0
        while not over.is_set():
            index = (index + (1 << 15)) % (1 << 32)  # a page of the bitmap each
            summary.record(read(index), Outcome(Verdict.FAULT, "rule"))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(20):
            try:
                total = Summary.merged([summary])
                assert total.totals()["reads"] >= 0
                assert summary.rest() is not None
                assert list(summary) is not None
            except RuntimeError as error:
                broken.append(error)
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not broken
