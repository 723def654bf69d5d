"""What explain says is what a run then does: on each backend, under random policies."""

import re

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvmsr.dispatch import Effect, explain
from kvmsr.errors import FilterCapacityError
from kvmsr.machine import Boot, Machine
from kvmsr.policy import Defaults, Op, Policy, Rule
from tests.conftest import GUESTS

# Some that every KVM handles, some that none does; EFER only for values that KVM refuses, for the
# guest needs it to come up.
MSRS = [0x174, 0x277, 0xC0000082, 0x35, 0x1B0, 0x12345678]
EFER = 0xC0000080
LOW = 0x100000  # somewhere in the guest
VALUES = [0, 5, 0x0007040600070406, 1 << 47]

plain = st.sampled_from(["kernel", "fault", "ignore", "shadow"])
bits = st.dictionaries(
    st.sampled_from(["0", "1-2", "47", "*"]),
    st.sampled_from(["rw", "ro", "fault", "w1c", "w1s", "once", "lock", "rc"]),
    min_size=1,
)


@st.composite
def conditions(draw, writes):
    asked = {
        "vcpu": st.integers(0, 1),
        "cpl": st.sampled_from([0, 3]),
        "rip": st.sampled_from(["0-0xffffffff", "0x100000000-0xffffffffffffffff"]),
        "reason": st.lists(
            st.sampled_from(["unknown", "invalid", "filter"]), min_size=1, max_size=2
        ),
        "after": st.integers(1, 2),
        "every": st.integers(1, 2),
    }
    if writes:
        asked["value"] = st.sampled_from(VALUES)
    chosen = draw(st.lists(st.sampled_from(sorted(asked)), min_size=1, max_size=2, unique=True))
    return {key: draw(asked[key]) for key in chosen}


@st.composite
def rules(draw):
    read = draw(st.none() | plain | st.sampled_from([1, 1 << 63]))
    write = draw(plain if read is None else st.none() | plain)
    when = draw(st.none() | conditions(writes=read is None))
    counts = when and {"after", "every"} & set(when)
    # A rule that counts does so over all its MSRs: one alone, so that each access is the first.
    many = st.lists(st.sampled_from(MSRS), min_size=1, max_size=1 if counts else 3, unique=True)
    extra = {}
    if "shadow" in (read, write):
        extra = {"reset": draw(st.sampled_from(VALUES)), "bits": draw(st.none() | bits)}
    return Rule(draw(many), read, write, when=when, **extra)


defaults = st.builds(
    Defaults,
    st.sampled_from(["fault", "ignore", "shadow"]),
    st.sampled_from(["fault", "ignore", "shadow"]),
)
EFER_RULES = st.lists(
    st.sampled_from(["fault", "ignore", "shadow"]).map(
        lambda action: Rule(EFER, write=action, when={"reason": "invalid"})
    ),
    max_size=1,
)


def run(backend, policy, accesses, ignore_msrs):
    """Return the plan, what the guest saw of each access, and what was told of it."""
    words = " ".join(
        f"{index:x}" if op is Op.READ else f"{index:x}={value:x}" for op, index, value in accesses
    )
    sent = bytearray()
    options = {"memory": 16 << 20, "output": sent.extend, "ignore_msrs": ignore_msrs}
    with Machine(backend, policy=policy, **options) as machine:
        machine.load(Boot(GUESTS / "list.elf", words))
        result = machine.run(60)
    lines = sent.decode().replace("\r\n", "\n").splitlines()
    return machine.plan, lines, {(row.index, row.op): row for row in result.summary}


def check(explanation, line, row):
    """Compare an explanation with a line of the guest's output and a row of the summary."""
    reason = row.reason if row else None
    (case, *_) = (
        one
        for one in explanation.cases
        if one.reason == reason and (row is None or one.rule == row.rule)
    )
    faulted = line.endswith("#GP")
    if case.effect is Effect.KERNEL:
        assert not (faulted and row and row.faults)
    else:
        assert faulted == (case.effect is Effect.FAULT)
    if case.effect is Effect.VALUE:
        assert int(re.search(r"= (0x\w+)", line)[1], 16) == case.value


@given(
    st.lists(rules(), max_size=5),
    EFER_RULES,
    defaults,
    st.lists(st.tuples(st.sampled_from(MSRS), st.sampled_from(VALUES)), unique_by=lambda t: t[0]),
    # As if the host swallowed what KVM does not know: the plan must then deny it.
    st.booleans(),
)
@example(  # reserved bits
    rules=[Rule(0x277, write="shadow", bits={"*": "fault"})], efer=[],
    defaults=Defaults(), writes=[(0x277, 5)], ignore_msrs=False,
)  # fmt: skip
@example(  # KVM is asked and refuses, and a rule has waited for that
    rules=[
        Rule(0x35, read=5, when={"reason": "unknown"}),
        Rule(0x35, read=7, when={"reason": "filter", "vcpu": 1}),
    ],
    efer=[], defaults=Defaults(), writes=[], ignore_msrs=False,
)  # fmt: skip
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_explain_agrees_with_what_a_run_does(
    any_backend, rules, efer, defaults, writes, ignore_msrs
):
    policy = Policy([*rules, *efer], defaults)
    accesses = [
        *((Op.READ, index, 0) for index in MSRS),
        (Op.WRITE, EFER, 1 << 48),
    ]
    # Only of MSRs whose reads leave nothing behind: explain is about the first access.
    clears = {i for rule in rules if rule.bits and rule.bits.rc for i, _ in rule.msrs}
    accesses += [(Op.WRITE, index, value) for index, value in writes if index not in clears]
    try:
        plan, lines, rows = run(any_backend, policy, accesses, ignore_msrs)
    except FilterCapacityError:
        return
    assert len(lines) == len(accesses), lines
    for (op, index, value), line in zip(accesses, lines, strict=True):
        explanation = explain(plan, op, index, value=value, rip=LOW)
        check(explanation, line, rows.get((index, op)))
