"""The outcome of an access: actions, defaults, shadows, handlers."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.dispatch import Dispatcher, Verdict
from kvmsr.dispatch.state import Shadows
from kvmsr.policy import Access, Defaults, Fault, Op, Policy, Reason, Rule
from kvmsr.policy.plan import KernelFacts, compile_policy

MSR = 0x474F4F00


def dispatcher(*rules, kernel=None, **defaults):
    return Dispatcher(compile_policy(Policy(rules, Defaults(**defaults)), kernel))


def read(index=MSR, reason=Reason.UNKNOWN, vcpu=0):
    return Access(vcpu, Op.READ, index, 0, reason)


def write(value, index=MSR, reason=Reason.UNKNOWN, vcpu=0):
    return Access(vcpu, Op.WRITE, index, value, reason)


def short(outcome):
    return outcome.verdict.value, outcome.rule, outcome.value


@pytest.mark.parametrize(
    ("action", "on_read", "on_write"),
    [
        ("fault", "fault", "fault"),
        ("ignore", "value", "done"),
        ("shadow", "value", "done"),
        ("stop", "stop", "stop"),
    ],
)
def test_plain_actions(action, on_read, on_write):
    d = dispatcher(Rule(MSR, read=action, write=action))
    assert short(d.handle(read())) == (on_read, "rule[0]", 0)
    assert d.handle(write(5)).verdict.value == on_write


def test_a_value_is_read():
    assert short(dispatcher(Rule(MSR, read=7)).handle(read())) == ("value", "rule[0]", 7)


def test_without_a_rule_the_reason_decides():
    d = dispatcher(unknown="ignore", invalid="stop")
    assert short(d.handle(read())) == ("value", "defaults.unknown", 0)
    assert short(d.handle(write(1, reason=Reason.INVALID))) == ("stop", "defaults.invalid", 0)


@pytest.mark.parametrize("rules", [(), (Rule(MSR, read="kernel", write="kernel"),)])
def test_an_access_that_was_filtered_without_a_rule_goes_back_to_kvm(rules):
    d = dispatcher(*rules)
    access = read(reason=Reason.FILTER)
    passed = d.handle(access)
    assert passed == (Verdict.KERNEL, "rule[0]" if rules else "kernel", 0)
    for reason in (Reason.UNKNOWN, Reason.INVALID):
        refused = d.refused(access._replace(reason=reason), passed)
        assert short(refused) == ("fault", f"defaults.{reason}", 0)
    assert short(d.handle(read())) == ("fault", "defaults.unknown", 0)


def test_but_not_with_ignore_msrs_where_kvm_pretends_to_know_every_msr():
    d = dispatcher(kernel=KernelFacts(ignore_msrs=True), unknown="ignore")
    assert short(d.handle(read(reason=Reason.FILTER))) == ("value", "defaults.unknown", 0)


def test_rules_hold_for_their_direction_only():
    d = dispatcher(Rule(MSR, read=1))
    assert d.handle(write(5)).rule == "defaults.unknown"


# Shadows


def test_a_shadow_reads_what_was_written():
    d = dispatcher(Rule(MSR, read="shadow", write="shadow", reset=6))
    assert d.handle(read()).value == 6
    d.handle(write((1 << 64) - 1))
    assert d.handle(read()).value == (1 << 64) - 1
    assert d.handle(read(vcpu=1)).value == 6  # each vCPU has its own


accesses = st.lists(
    st.tuples(
        st.sampled_from(["read", "write"]), st.integers(0, 2), st.integers(0, 5), st.integers(0, 9)
    )
)


@given(accesses)
def test_shadows_are_a_dictionary_with_a_limit(steps):
    shadows, model, limit = Shadows(limit=4), {}, 4
    for op, vcpu, index, value in steps:
        if op == "read":
            assert shadows.read(vcpu, index, 99) == model.get((vcpu, index), 99)
            continue
        fits = (vcpu, index) in model or len(model) < limit
        assert shadows.write(vcpu, index, value) is fits
        if fits:
            model[vcpu, index] = value
    assert len(shadows) == len(model) <= limit


def test_a_shadow_write_without_room_faults_and_is_counted():
    d = dispatcher(unknown="shadow")
    d.shadows._limit = 2
    verdicts = [d.handle(write(1, index=0x50000 + n)).verdict for n in range(4)]
    assert verdicts == [Verdict.DONE, Verdict.DONE, Verdict.FAULT, Verdict.FAULT]
    assert d.shadows.refused == 2


# Handlers


def test_a_handler_answers():
    seen = []

    def answer(access):
        seen.append(access)
        return 5

    d = dispatcher(Rule(MSR, read=answer, write=seen.append))
    assert short(d.handle(read(vcpu=3))) == ("value", "rule[0]", 5)
    assert short(d.handle(write(8))) == ("done", "rule[0]", 0)
    assert seen == [read(vcpu=3), write(8)]
    assert d.failure_count == 0


def test_a_handler_may_fault():
    def refuse(access):
        raise Fault

    d = dispatcher(Rule(MSR, read=refuse, write=refuse))
    assert d.handle(read()).verdict is Verdict.FAULT
    assert d.handle(write(1)).verdict is Verdict.FAULT
    assert d.failure_count == 0


def raise_error(access):
    raise ValueError("no such thing")


def leave(access):
    raise SystemExit(3)


class Nasty:
    def __index__(self):
        raise RuntimeError("not now")

    def __repr__(self):
        raise RuntimeError("nor now")


class NastyError(Exception):
    def __str__(self):
        raise RuntimeError("never")


class Leaving:
    def __index__(self):
        raise SystemExit(3)

    __repr__ = __index__


class LeavingError(Exception):
    def __str__(self):
        raise SystemExit(3)


def raise_nasty(access):
    raise NastyError


def raise_leaving(access):
    raise LeavingError


def raise_much(access):
    raise ValueError("x" * 1_000_000)


def recurse(access):
    return recurse(access)


def raise_lines(access):
    raise ValueError("one\ntwo\n  three")


WRONG = [
    (lambda access: Nasty(), "returned a Nasty;"),
    (lambda access: Leaving(), "returned a Leaving;"),
    (lambda access: 1 << 100_000, "does not fit"),
    (lambda access: -(10**5000), "returned -0x"),
    (raise_leaving, "raised LeavingError"),
    (raise_much, "raised ValueError: xxx"),
    (recurse, "raised RecursionError"),
    (raise_nasty, "raised NastyError"),
    (raise_lines, "raised ValueError: one two three"),
    (raise_error, "raised ValueError: no such thing"),
    (leave, "raised SystemExit: 3"),
    (lambda access: None, "returned None"),
    (lambda access: "5", "returned '5'"),
    (lambda access: 1.5, "returned 1.5"),
    (lambda access: -1, "returned -1"),
    (lambda access: 1 << 64, "does not fit an MSR's 64 bits"),
]


@pytest.mark.parametrize(("handler", "message"), WRONG)
@pytest.mark.parametrize(
    ("on_error", "verdict"), [("fault", "fault"), ("ignore", "value"), ("stop", "stop")]
)
def test_a_handler_that_fails_is_never_a_silent_zero(handler, message, on_error, verdict):
    d = dispatcher(Rule(MSR, read=handler), on_error=on_error)
    assert short(d.handle(read())) == (verdict, "defaults.on_error", 0)
    (failure,) = d.failures
    assert message in failure.message
    assert len(failure.message) < 300 and "\n" not in failure.message
    assert len(failure.traceback) < 20_000
    assert failure.rule == "rule[0]"
    assert failure.access == read()
    assert handler.__name__ in failure.handler


def test_a_handler_of_writes_returns_nothing():
    d = dispatcher(Rule(MSR, write=lambda access: 1))
    assert d.handle(write(1)).verdict is Verdict.FAULT
    assert "returns nothing" in d.failures[0].message


def test_failures_are_counted_and_few_are_kept():
    d = dispatcher(Rule(MSR, read=raise_error))
    for _ in range(1000):
        d.handle(read())
    assert d.failure_count == 1000
    assert len(d.failures) == 32
    assert "raise_error" in d.failures[0].traceback


def test_handlers_may_be_called_by_several_vcpus_at_once():
    meet = threading.Barrier(2, timeout=10)
    d = dispatcher(Rule(MSR, read=lambda access: (meet.wait() and 0) or access.vcpu))
    values = []
    threads = [
        threading.Thread(target=lambda n=n: values.append(d.handle(read(vcpu=n)).value))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(values) == [0, 1]


def test_memory_stays_bounded_when_a_guest_touches_a_million_msrs():
    d = dispatcher(unknown="ignore")
    for index in range(1_000_000):
        d.handle(read(index=0x1000_0000 + index))
    assert len(d._reads) <= 4096


def test_ctrl_c_is_no_failure_of_a_handler():
    def interrupted(access):
        raise KeyboardInterrupt

    class Interrupted:
        __index__ = __repr__ = interrupted

    for handler in (interrupted, lambda access: Interrupted()):
        d = dispatcher(Rule(MSR, read=handler, write=handler))
        for access in (read(), write(1)):
            with pytest.raises(KeyboardInterrupt):
                d.handle(access)
        assert d.failure_count == 0


def test_words_do_for_the_enumerations():
    d = dispatcher(Rule(MSR, read=7, write="shadow"))
    assert d.handle(Access(0, "read", MSR, 0, "unknown")).value == 7
    assert d.handle(Access(0, "write", MSR, 5, "unknown")).verdict is Verdict.DONE
    assert d.handle(Access(0, "read", 0x9999, 0, "unknown")).rule == "defaults.unknown"
