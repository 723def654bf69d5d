"""Replay: each vCPU gets its own answers in order, and what was not recorded next is reported."""

import threading

import numpy as np
import pytest

from kvmsr.dispatch import Dispatcher
from kvmsr.errors import TraceError
from kvmsr.policy import Access, Counter, Fault, Op, Plain, Reason, Rule
from kvmsr.policy.plan import compile_policy
from kvmsr.trace.file import EVENT, LATENCY, Grade
from kvmsr.trace.file.columns import VALUE
from kvmsr.trace.replay import Recorded, Replay, differences
from tests.trace.file.made import trace
from tests.trace.learn.guests import MSR, recorded, run

SCRIPT = [
    (10, 0, "read", 0), (20, 1, "read", 0), (30, 0, "write", 5), (40, 0, "read", 0),
    (50, 1, "read", 0), (60, 0, "write", 9, 0x35), (70, 0, "read", 0, 0x277),
]  # fmt: skip
RULES = [
    Rule(MSR, "shadow", "shadow", reset=3),
    Rule(0x35, None, "fault"),
    Rule(0x277, 6),
]


@pytest.fixture
def boot(tmp_path):
    return recorded(tmp_path / "boot.arrows", SCRIPT, run(RULES, SCRIPT))


def access(vcpu, op, index=MSR, value=0, reason=Reason.UNKNOWN):
    return Access(vcpu, Op(op), index, value, reason)


def outcomes(boot, *accesses):
    """Let a dispatcher answer under the policy of a replay; return the replay, too."""
    replay = Replay(Recorded(boot))
    dispatcher = Dispatcher(compile_policy(replay_policy(replay, boot)))
    found = [dispatcher.handle(one) for one in accesses]
    return [
        one.value if one.verdict.value == "value" else one.verdict.value for one in found
    ], replay


def replay_policy(replay, boot):
    return Recorded(boot).policy(replay, "the replay")


def test_each_vcpu_gets_its_answers_in_order(boot):
    got, replay = outcomes(
        boot, access(1, "read"), access(0, "read"), access(1, "read"), access(0, "write", value=5),
        access(0, "read"), access(0, "write", 0x35, 9), access(0, "read", 0x277),
    )  # fmt: skip
    assert got == [3, 3, 3, "done", 5, "fault", 6]
    assert (replay.answered, replay.diverged, replay.left) == (7, 0, 0)


def test_divergences_have_both_sides(boot):
    got, replay = outcomes(
        boot, access(0, "write", value=6), access(1, "read", 0x35), access(0, "read", 0x277),
        access(0, "read", 0x277), access(0, "write", 0x277, 1),
    )  # fmt: skip
    assert got == ["done", "fault", 6, 6, "fault"]
    assert list(map(str, replay.divergences)) == [
        f"vCPU 0: write 1 of MSR {MSR:#x}: recorded: 0x5, done; here: 0x6, done",
        "vCPU 1: read 1 of MSR 0x35 (MSR_CORE_THREAD_COUNT): recorded: no such access; here: #GP",
        "vCPU 0: read 2 of MSR 0x277 (IA32_PAT): recorded: 1 in all; here: 0x6",
        "vCPU 0: write 1 of MSR 0x277 (IA32_PAT): recorded: no such access; here: #GP",
    ]
    assert (replay.answered, replay.diverged, replay.left) == (5, 4, 5)
    assert replay.divergences[0].as_dict() == {
        "vcpu": 0, "op": "write", "index": f"{MSR:#x}", "number": 1, "recorded": "0x5, done",
        "here": "0x6, done",
    }  # fmt: skip


def test_only_what_the_policy_took_from_kvm_is_taken(tmp_path):
    """What KVM gave up comes by itself; what it completed unseen must stay with it."""
    filtered = recorded(tmp_path / "a", SCRIPT, run(RULES, SCRIPT), reason=Reason.FILTER)
    plan = compile_policy(Recorded(filtered).policy(lambda access: 0, "x"))
    assert Reason.FILTER in plan.reasons
    taken = [rule.msrs for rule in plan.policy.rules if rule.when is None]
    assert taken == [((0x277, 0x277), (MSR, MSR)), ((0x35, 0x35), (MSR, MSR))]
    given_up = recorded(tmp_path / "b", SCRIPT, run(RULES, SCRIPT))
    plan = compile_policy(Recorded(given_up).policy(lambda access: 0, "x"))
    assert plan.reasons == {Reason.UNKNOWN, Reason.INVALID}


def test_what_went_to_kvm_is_left_to_it(tmp_path):
    passed = [one._replace(rule="kernel") for one in run(RULES, SCRIPT)]
    found = Recorded(recorded(tmp_path / "a", SCRIPT, passed, reason=Reason.FILTER))
    assert len(found) == 0
    assert [rule.when is None for rule in found.policy(lambda access: 0, "x").rules] == [False]


def test_the_end_of_the_recorded_run(tmp_path):
    script = [(1, 0, "write", 5)]
    path = recorded(tmp_path / "a", script, run([Rule(MSR, None, "stop")], script))
    why = []
    replay = Replay(Recorded(path), stop=why.append)
    policy = Recorded(path).policy(replay, "x")
    Dispatcher(compile_policy(policy)).handle(access(0, "write", value=5))
    assert why == [f"the recorded run was stopped at this write of MSR {MSR:#x} = 0x5 on vCPU 0"]


def test_vcpus_replay_at_once(tmp_path):
    """Each thread sees its own vCPU's values, in order."""
    script = [(n, n % 4, "read", 0) for n in range(8000)]
    made = [one._replace(value=n) for n, one in enumerate(run([Rule(MSR, 1)], script))]
    replay = Replay(Recorded(recorded(tmp_path / "a", script, made)))
    got = {}

    def vcpu(number):
        got[number] = [replay(access(number, "read")) for _ in range(2000)]

    threads = [threading.Thread(target=vcpu, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: list(range(number, 8000, 4)) for number in range(4)}
    assert (replay.diverged, replay.left, replay.answered) == (0, 0, 8000)


def test_only_the_first_divergences_are_kept(boot):
    replay = Replay(Recorded(boot))
    for index in range(3000):
        with pytest.raises(Fault):
            replay(access(7, "read", index))
    assert replay.diverged == 3000
    assert len(replay.divergences) == 1000


def differing(tmp_path, script, rules, other_script, other_rules, counters=frozenset()):
    paths = [
        Recorded(recorded(tmp_path / name, its, run(given, its)))
        for name, its, given in (("a", script, rules), ("b", other_script, other_rules))
    ]
    return list(map(str, differences(*paths, counters)))


def test_differences_between_runs(tmp_path):
    assert differing(tmp_path, SCRIPT, RULES, SCRIPT, RULES) == []
    other = [Rule(MSR, "shadow", "fault", reset=3), *RULES[1:]]
    assert differing(tmp_path, SCRIPT, RULES, SCRIPT, other) == [
        f"vCPU 0: read 2 of MSR {MSR:#x}: recorded: 0x5; here: 0x3",
        f"vCPU 0: write 1 of MSR {MSR:#x}: recorded: 0x5, done; here: 0x5, #GP",
    ]
    assert differing(tmp_path, SCRIPT, RULES, SCRIPT[:-1], RULES) == [
        "vCPU 0: read 1 of MSR 0x277 (IA32_PAT): recorded: 0x6; here: no such access"
    ]
    assert differing(tmp_path, SCRIPT[:-1], RULES, SCRIPT, RULES) == [
        "vCPU 0: read 1 of MSR 0x277 (IA32_PAT): recorded: no such access; here: 0x6"
    ]


def test_the_value_of_a_counter_is_no_difference_but_a_fault_is(tmp_path):
    script = [(n * 10**9, 0, "read", 0) for n in range(3)]
    rules = [Rule(MSR, Counter(10))], [Rule(MSR, Counter(11))]
    assert len(differing(tmp_path, script, rules[0], script, rules[1])) == 2
    counters = frozenset({MSR})
    assert differing(tmp_path, script, rules[0], script, rules[1], counters) == []
    fault = [Rule(MSR, Plain.FAULT)]
    assert len(differing(tmp_path, script, rules[0], script, fault, counters)) == 3


def test_traces_without_every_answer(tmp_path):
    made = run(RULES, SCRIPT)
    for grade in (Grade.COUNT, Grade.ONCE, Grade.CHANGE):
        path = recorded(tmp_path / "a", SCRIPT, made, grade=grade)
        with pytest.raises(TraceError, match=f"grade {grade}, so it does not have every answer"):
            Recorded(path)


def test_what_a_trace_lacks_is_noted(tmp_path):
    rows = np.zeros(4, EVENT)
    rows["count"], rows["has"] = 1, LATENCY | VALUE
    rows["count"][1], rows["has"][1] = 50, 0
    rows["vm"][3] = 1
    path = trace(tmp_path / "a", rows)
    path.write_bytes(path.read_bytes()[:-8])
    found = Recorded(path)
    assert len(found) == 2
    assert found.notes == [
        f"{path}: its end is missing; it is used up to there",
        f"{path}: 50 accesses came too fast to be recorded",
        f"{path}: 1 access of other VMs than the first are not used",
    ]
