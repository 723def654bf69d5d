"""Learning: a policy that was learned from a trace gives the same outcomes again."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmsr.errors import TraceError
from kvmsr.policy import BitKind, Counter, Plain, Reason, Rule
from kvmsr.policy.file import parse_policy
from kvmsr.trace.file import Grade
from kvmsr.trace.learn import learn
from tests.trace.file.made import events, trace
from tests.trace.learn.guests import MSR, recorded, run

BITS = [kind for kind in BitKind if kind is not BitKind.LOCK]
U64 = (1 << 64) - 1


def policy_of(learned):
    return parse_policy(learned.text)


def learned_from(folder, rules, script, **how):
    """Let a dispatcher answer *script* under *rules*; return what is learned from the trace."""
    outcomes = run(rules, script, **how)
    return learn([recorded(folder / "trace.arrows", script, outcomes, **how)])


def only_rule(learned):
    (rule,) = policy_of(learned).rules
    return rule


def same(outcomes):
    return [(outcome.verdict, outcome.value) for outcome in outcomes]


values = st.one_of(st.integers(0, 7), st.sampled_from([0x8000, 1 << 63, U64]), st.integers(0, U64))
kinds = st.lists(st.sampled_from(BITS), min_size=64, max_size=64)


@st.composite
def fields(draw):
    """Return bits in a few fields."""
    cuts = sorted({0, 64, *draw(st.lists(st.integers(1, 63), max_size=4))})
    return {f"{low}-{high - 1}": draw(st.sampled_from(BITS)).value for low, high in pairwise(cuts)}


@st.composite
def registers(draw):
    """Return the rules of a register that behaves in a way that the language has."""
    kind = draw(st.sampled_from(["plain", "shadow", "bits", "vcpu", "after", "value", "lock"]))
    answer = st.one_of(values, st.just("fault"))
    act = st.sampled_from(["ignore", "fault"])
    if kind == "plain":
        return [Rule(MSR, draw(answer), draw(act))]
    if kind == "shadow":
        scope = draw(st.sampled_from(["thread", "vm"]))
        return [Rule(MSR, "shadow", "shadow", reset=draw(values), scope=scope)]
    if kind == "bits":
        return [Rule(MSR, "shadow", "shadow", reset=draw(values), bits=draw(fields()))]
    if kind == "lock":
        return [Rule(MSR, "shadow", "shadow", bits={"0": "lock", "*": "rw"})]
    if kind == "vcpu":
        return [
            Rule(MSR, draw(answer), draw(act), when={"vcpu": [1]}),
            Rule(MSR, draw(answer), draw(act)),
        ]
    if kind == "after":
        number = draw(st.integers(2, 9))
        return [Rule(MSR, draw(answer), when={"after": number}), Rule(MSR, draw(answer), draw(act))]
    return [
        Rule(MSR, None, "fault", when={"value": draw(st.integers(0, 7))}),
        Rule(MSR, draw(answer), "ignore"),
    ]


@st.composite
def scripts(draw):
    """Return what guests do, in order of time."""
    steps = draw(
        st.lists(
            st.tuples(
                st.integers(1, 10**6), st.integers(0, 2), st.sampled_from(["read", "write"]), values
            ),
            min_size=1,
            max_size=40,
        )
    )
    times = np.cumsum([step[0] for step in steps]).tolist()
    return [(time, *step[1:]) for time, step in zip(times, steps, strict=True)]


@given(registers(), scripts())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_what_is_learned_gives_the_same_outcomes(tmp_path, rules, script):
    outcomes = run(rules, script)
    learned = learn([recorded(tmp_path / "a", script, outcomes)])
    assert learned.missed == 0
    assert learned.accesses == len(script)
    assert same(run(policy_of(learned), script)) == same(outcomes)


@given(st.integers(1, 10**10), st.integers(0, U64), st.sampled_from(["ignore", "fault", "set"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_counters_are_estimated(tmp_path, hz, reset, on_write):
    counter = Counter(hz)
    rule = Rule(MSR, counter, counter if on_write == "set" else on_write, reset=reset)
    script = [(n * 10**9 + n * n * 1000, 0, "read", 0) for n in range(1, 20)]
    script.insert(10, (10 * 10**9 + 500_000, 0, "write", 12345))
    learned = learned_from(tmp_path, [rule], script)
    assert learned.missed == 0
    assert learned.counters == {MSR}
    found = only_rule(learned)
    assert found.read.hz == pytest.approx(hz, rel=1e-6, abs=1)
    got, wanted = run([found], script), run([rule], script)
    for one, other in zip(got, wanted, strict=True):
        assert one.verdict is other.verdict
        off = one.value - other.value & U64
        assert min(off, U64 + 1 - off) <= max(3, hz // 5000)


def test_a_counter_that_was_read_inexactly(tmp_path):
    """The frequency is rounded as far as the values allow, and the comment has the error."""
    chance = np.random.default_rng(1)
    script = [(n * 10**8, 0, "read", 0) for n in range(1, 50)]
    outcomes = run([Rule(MSR, Counter(2_000_000_000), reset=7)], script)
    late = [(time + int(chance.integers(0, 20_000)), *rest) for time, *rest in script]
    learned = learn([recorded(tmp_path / "a", late, outcomes)])
    assert only_rule(learned).read == Counter(2_000_000_000)
    assert "counter = 2_000_000_000" in learned.text
    assert "# MSR 0x474f4f00: 49 reads (0xbebc207 …" in learned.text
    assert "off (" in learned.text


@pytest.mark.parametrize(
    ("rule", "script", "wanted"),
    [
        (Rule(MSR, 5, "ignore"), "r w1 r", Rule(MSR, 5, "ignore")),
        (Rule(MSR, 0, "ignore"), "r w1 r", Rule(MSR, "ignore", "ignore")),
        (Rule(MSR, 5), "r r", Rule(MSR, 5)),
        (Rule(MSR, "fault", "fault"), "r w1", Rule(MSR, "fault", "fault")),
        (Rule(MSR, 5, "ignore"), "w5 r", Rule(MSR, "shadow", "shadow")),
        (Rule(MSR, 5, "ignore"), "r w7", Rule(MSR, 5, "ignore")),
        (
            Rule(MSR, "shadow", "shadow", reset=7),
            "r w1 r w2",
            Rule(MSR, "shadow", "shadow", reset=7),
        ),
        (
            Rule(MSR, "shadow", "shadow", reset=1, bits={"0-7": "rw", "*": "ro"}),
            "r w0xffffffffffffff80 r",
            Rule(MSR, "shadow", "shadow", reset=1, bits={"0-7": "rw", "*": "ro"}),
        ),
        (
            Rule(MSR, "shadow", "shadow", reset=0xF0, bits={"4-7": "w1c", "*": "rw"}),
            "r w0x30 r w3 r w0xf3 r",
            Rule(MSR, "shadow", "shadow", reset=0xF0, bits={"4-7": "w1c", "*": "rw"}),
        ),
        (
            Rule(MSR, "shadow", "shadow", bits={"0-3": "rw", "*": "fault"}),
            "w15 r w0xfffffffffffffff0 r w7 r",
            Rule(MSR, "shadow", "shadow", bits={"0-3": "rw", "*": "fault"}),
        ),
        (
            Rule(MSR, "shadow", "shadow", bits={"0": "lock", "*": "rw"}),
            "r w6 r w5 r w2 r w4",
            Rule(MSR, "shadow", "shadow", bits={"0": "lock", "*": "rw"}),
        ),
    ],
)
def test_rules_that_a_person_would_write(tmp_path, rule, script, wanted):
    made = [
        (number * 1000, 0, "read" if word == "r" else "write", int(word[1:] or "0", 0))
        for number, word in enumerate(script.split(), 1)
    ]
    assert only_rule(learned_from(tmp_path, [rule], made)) == wanted


@pytest.mark.parametrize(
    "rules",
    [
        [Rule(MSR, 7, when={"vcpu": 2}), Rule(MSR, 5, "ignore")],
        [Rule(MSR, 9, when={"vcpu": [1, 3]}), Rule(MSR, 7, when={"vcpu": 2}), Rule(MSR, 5)],
        [Rule(MSR, 7, when={"after": 6}), Rule(MSR, 5, "fault")],
        [Rule(MSR, 7, when={"every": 5}), Rule(MSR, 5)],
        [Rule(MSR, None, "fault", when={"value": 3}), Rule(MSR, 5, "ignore")],
    ],
)
def test_conditions(tmp_path, rules):
    """Where vCPUs, values or numbers make a difference, rules say so."""
    reads = [(n, (n * 7 + n // 3) % 5, "read", 0) for n in range(1, 60)]
    written = [(n + 100, n % 5, "write", n % 4) for n in range(20) if rules[-1].write]
    learned = learned_from(tmp_path, rules, reads + written)
    assert learned.missed == 0
    found = [(rule.read, rule.write, rule.when) for rule in policy_of(learned).rules]
    wanted = [(rule.read, rule.write, rule.when) for rule in rules]
    if rules[0].when.vcpu and rules[-1].write:
        wanted[0] = (wanted[0][0], Plain.IGNORE, wanted[0][2])  # vCPU 2 wrote, too
    assert sorted(map(str, found)) == sorted(map(str, wanted))


def test_msrs_that_behave_alike_share_a_rule(tmp_path):
    rules = [Rule(["0x400-0x403", "IA32_PAT", 0x35], 3), Rule("0x600-0x601", "fault")]
    script = [
        (n, 0, "read", 0, index)
        for n, index in enumerate([0x277, 0x400, 0x402, 0x401, 0x403, 0x35, 0x600, 0x601])
    ]
    learned = learned_from(tmp_path, rules, script)
    assert 'msr = ["MSR_CORE_THREAD_COUNT", "IA32_PAT", "0x400-0x403"]\n' in learned.text
    assert 'msr = ["IA32_DS_AREA", "MSR_PERF_CAPABILITIES"]' not in learned.text
    assert "# IA32_MC0_STATUS (0x401): 1 read (0x3)\n" in learned.text
    assert len(policy_of(learned).rules) == 2


def test_a_refused_value_is_left_to_the_reason_for_which_it_came(tmp_path):
    """KVM completed the other writes, and goes on doing so."""
    learned = learned_from(
        tmp_path, [Rule(MSR, None, "fault")], [(1, 0, "write", 9)], reason=Reason.INVALID
    )
    rule = only_rule(learned)
    assert rule.write is Plain.FAULT
    assert rule.when.reason == (Reason.INVALID,)


def test_the_registers_of_x2apic_can_be_learned(tmp_path):
    script = [(n, vcpu, "read", 0, 0x802) for n, vcpu in enumerate([0, 1, 0, 1])]
    rules = [Rule(0x802, vcpu, when={"vcpu": [vcpu], "reason": "unknown"}) for vcpu in (0, 1)]
    learned = learned_from(tmp_path, rules, script)
    assert learned.missed == 0
    assert all(rule.when.reason == (Reason.UNKNOWN,) for rule in policy_of(learned).rules)


def test_what_went_to_kvm_still_does(tmp_path):
    script = [(1, 0, "read", 0, 0x277), (2, 0, "read", 0)]
    outcomes = [one._replace(rule=rule) for one, rule in zip(
        run([Rule([0x277, MSR], 6)], script), ["kernel", "a.toml:1"], strict=True
    )]  # fmt: skip
    learned = learn([recorded(tmp_path / "a", script, outcomes)])
    assert only_rule(learned).msrs == ((MSR, MSR),)
    assert "# Left to KVM, as in the trace: IA32_PAT (0x277)" in learned.text


def test_what_no_rule_explains_is_said(tmp_path):
    chance = np.random.default_rng(1)
    script = [(n, 0, "read", 0) for n in range(1, 40)]
    outcomes = run([Rule(MSR, 1)], script)
    odd = [one._replace(value=int(chance.integers(0, 3))) for one in outcomes]
    learned = learn([recorded(tmp_path / "a", script, odd)])
    assert learned.missed > 0
    assert "NOT REPRODUCED" in learned.text
    assert learned.notes == [f"MSR {MSR:#x}: {learned.missed} outcomes not reproduced"]
    common = np.bincount([one.value for one in odd]).argmax()
    assert only_rule(learned).read.value == common


def test_traces_that_disagree(tmp_path):
    script = [(1, 0, "read", 0), (2, 0, "read", 0, 0x35)]
    paths = [
        recorded(tmp_path / name, script, run([Rule(MSR, value), Rule(0x35, 4)], script))
        for name, value in (("a", 5), ("b", 6))
    ]
    learned = learn(paths)
    (note,) = learned.notes
    said = "the traces disagree: {}: read = {{ value = 0x5 }} | {}: read = {{ value = 0x6 }}"
    assert note == f"MSR {MSR:#x}: {said.format(*paths)}"
    assert f"#   {said.format(*paths)}" in learned.text
    assert learned.missed == 1
    assert {rule.msrs[0][0] for rule in policy_of(learned).rules} == {0x35, MSR}


def test_several_traces_add_up(tmp_path):
    rules = [Rule(MSR, "shadow", "shadow", reset=3)]
    scripts = [[(1, 0, "read", 0)], [(1, 0, "write", 8), (2, 0, "read", 0)]]
    paths = [
        recorded(tmp_path / str(number), script, run(rules, script))
        for number, script in enumerate(scripts)
    ]
    learned = learn(paths)
    assert only_rule(learned) == rules[0]
    assert (learned.missed, learned.notes) == (0, [])


def test_defaults_are_learned(tmp_path):
    script = [(1, 0, "read", 0), (2, 0, "write", 0)]
    outcomes = [
        one._replace(rule="defaults.unknown") for one in run([Rule(MSR, 0, "ignore")], script)
    ]
    assert (
        policy_of(learn([recorded(tmp_path / "a", script, outcomes)])).defaults.unknown == "ignore"
    )
    faults = [
        one._replace(rule="defaults.unknown") for one in run([Rule(MSR, "fault", "fault")], script)
    ]
    assert policy_of(learn([recorded(tmp_path / "a", script, faults)])).defaults.unknown == "fault"


def test_grades(tmp_path):
    script = [(1, 0, "read", 0)]
    outcomes = run([Rule(MSR, 5)], script)
    with pytest.raises(TraceError, match=r"a: nothing can be learned from a trace of grade count"):
        learn([recorded(tmp_path / "a", script, outcomes, grade=Grade.COUNT)])
    learned = learn([recorded(tmp_path / "a", script, outcomes, grade=Grade.CHANGE)])
    assert "it was recorded with grade change" in learned.notes[0]


def test_a_trace_that_is_cut_or_empty(tmp_path):
    script = [(1, 0, "read", 0)]
    path = recorded(tmp_path / "a", script, run([Rule(MSR, 5)], script))
    path.write_bytes(path.read_bytes()[:-8])
    learned = learn([path])
    assert learned.notes == [f"{path}: its end is missing; it is used up to there"]
    assert only_rule(learned) == Rule(MSR, 5)
    learned = learn([trace(tmp_path / "b", events(0))])
    assert policy_of(learned).rules == ()
    assert learned.notes == [f"{tmp_path / 'b'}: there is no access in it"]


def test_many_msrs_and_many_accesses_have_limits(tmp_path):
    made = events(20_000)
    made["index"] = np.arange(20_000) % 5000 + 0x5000
    made["op"] = made["outcome"] = made["reason"] = 0
    made["value"] = 1
    learned = learn([trace(tmp_path / "a", made)])
    assert "other MSRs than the first 4,096 were not used" in learned.notes[-1]
    assert len(policy_of(learned).rules) == 1


def test_text_from_the_trace_stays_in_its_comment(tmp_path):
    script = [(1, 0, "read", 0)]
    outcomes = run([Rule(MSR, 5)], script)
    path = recorded(tmp_path / 'x"y\n[[rule]]', script, outcomes, backend='evil"\n[x]\n\x1b[1m')
    policy = policy_of(learn([path]))
    assert policy.rules == (Rule(MSR, 5),)
    assert policy.name == "x-y-rule"


@pytest.mark.parametrize("seed", range(40))
def test_traces_that_no_run_can_have_made(tmp_path, seed):
    """Whatever the columns say, a policy comes out."""
    chance = np.random.default_rng(seed)
    made = events(60, seed=seed)
    made["index"] = chance.choice([0x10, 0x802, 0x35, 0xFFFFFFFF], 60)
    made["value"] = chance.integers(0, 4, 60)
    made["outcome"] = chance.integers(0, 4, 60)
    made["vcpu"] = chance.choice([0, 0, 1, 65535], 60)
    made["guest_ns"] = chance.integers(0, 1 << 63, 60) * np.uint64(2)
    learned = learn([trace(tmp_path / "a", made)])
    assert learned.accesses == 60
    found = {first for rule in policy_of(learned).rules for first, _ in rule.msrs}
    assert found == set(made["index"].tolist())
