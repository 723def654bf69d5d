"""C and Python answer alike: random policies and accesses, and everything that a user can see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsr import native
from kvmsr.dispatch import Dispatcher, Verdict
from kvmsr.policy import (
    Access,
    BitKind,
    Counter,
    Defaults,
    Op,
    Policy,
    Reason,
    Rule,
    Scope,
    Topology,
    Where,
)
from kvmsr.policy.plan import KernelFacts, compile_policy
from kvmsr.trace import Summary

if native.available():
    from kvmsr.native import ffi, lib
    from kvmsr.native.block import Block
    from kvmsr.native.summary import native_summary
    from kvmsr.native.table import Names, compile_table
    from kvmsr.native.vm import NativeVm, outcome_of
    from kvmsr.native.words import OPS, REASONS, made_access

pytestmark = pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")

INDICES = [0x10, 0x35, 0x1B0, 0x277, 0x40000000, 0x12345678, 0xC0010015]
RIP = 0x1000
WHERE = Where(RIP, 0, (0x2000, 0x3000), 0b10)

indices = st.sampled_from(INDICES)
values = st.sampled_from([0, 1, 2, 3, 0xFF, 1 << 63, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
bits = st.dictionaries(
    st.sampled_from(["0", "1", "2-3", "4-7", "63", "*"]), st.sampled_from(list(BitKind)), min_size=1
)
reasons = st.sampled_from(list(Reason))
rates = st.sampled_from([1, 10**9, 10**12]) | st.integers(1, 10**12)


SEEN = []
"""The accesses that handlers saw: from Python, from C, and so on in turn."""


def on_read(access):
    SEEN.append(access)
    if access.value & 1 or access.vcpu == 3:
        raise RuntimeError("not for you")
    return access.index + access.vcpu


def on_write(access):
    SEEN.append(access)


@st.composite
def conditions(draw, for_writes):
    when = {}
    if draw(st.booleans()):
        when["vcpu"] = draw(st.lists(st.integers(0, 3), min_size=1))
    if draw(st.booleans()):
        when["rip"] = draw(st.sampled_from(["0x1000", "0x0-0xfff", "0x800-0x1800"]))
    if draw(st.booleans()):
        callers = ["0x1000", "0x2fff", "0x3000", "0x1800-0x2800", "0x2001-0x2fff", "0x2800-0x4000"]
        when["caller"] = draw(st.sampled_from(callers))
    if for_writes and draw(st.booleans()):
        when["value"] = draw(st.integers(0, 3))
        when["mask"] = 3
    if draw(st.booleans()):
        when["after"] = draw(st.integers(1, 4))
    if draw(st.booleans()):
        when["every"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        when["reason"] = draw(st.lists(reasons.map(str), min_size=1))
    return when or None


@st.composite
def rules(draw):
    plain = ["fault", "ignore", "shadow", "kernel", "stop", Counter(draw(rates))]
    both = draw(st.booleans())
    read = draw(st.sampled_from([*plain, 0x1234, on_read]))
    write = draw(st.sampled_from([*plain, on_write]))
    if not both:
        read, write = (read, None) if draw(st.booleans()) else (None, write)
    shadow = "shadow" in (read, write)
    keeps = shadow or any(isinstance(action, Counter) for action in (read, write))
    return Rule(
        draw(st.lists(indices, min_size=1, max_size=3, unique=True)),
        read=read,
        write=write,
        reset=draw(values) if keeps else None,
        bits=draw(st.none() | bits) if shadow else None,
        scope=draw(st.sampled_from(list(Scope))) if keeps else None,
        when=draw(st.none() | conditions(read is None)),
        log=draw(st.none() | st.sampled_from(["never", "once", "change", "always"])),
    )


unknown = st.sampled_from(["fault", "ignore", "shadow", "stop"])
policies = st.builds(
    Policy,
    st.lists(rules(), max_size=6),
    st.builds(Defaults, unknown, unknown, st.sampled_from(["fault", "ignore", "stop"])),
    topology=st.builds(Topology, st.integers(1, 2), st.none() | st.integers(1, 2)),
)
accesses = st.lists(
    st.builds(
        lambda vcpu, op, index, value, reason, refused, time: (
            Access(vcpu, op, index, value if op is Op.WRITE else 0, reason),
            refused,
            time,
        ),
        st.integers(0, 3),
        st.sampled_from(list(Op)),
        indices,
        values,
        reasons,
        st.sampled_from([Reason.UNKNOWN, Reason.INVALID]),
        st.integers(0, 1 << 40),
    ),
    max_size=30,
)


class Clock:
    """The guest's time, for both."""

    begun = now = 5

    @property
    def elapsed(self):
        return self.now - self.begun


def same(state):
    """Return the part of *state* that must be equal; the elapsed time goes on by itself."""
    return state | {"elapsed": 0}


class Native:
    """Answers with the C of a vCPU; the caller plays KVM's part."""

    def __init__(self, plan, logged, clock):
        self.block = Block(4)
        self.names = Names()
        self.dispatcher = Dispatcher(
            plan,
            vcpus=4,
            rip=lambda vcpu: RIP,
            where=lambda vcpu: WHERE,
            log=lambda a, o, text: logged.append(text),
        )
        self.clock = clock
        self.side = NativeVm(self.dispatcher, self.block, self.names)
        self.block.install(compile_table(plan, self.names, logs=True))
        self.cpus = []
        for number in range(4):
            cpu = self.block.new_cpu(0, number)
            cpu.fd, cpu.rip, cpu.where.rip = -1, RIP, RIP
            cpu.where.callers[0:2], cpu.where.n_callers = WHERE.callers, 2
            self.cpus.append(cpu)

    def handle(self, access):
        cpu = self.cpus[access.vcpu]
        cpu.time_ns = self.clock.elapsed
        raw = cpu.access
        raw.vcpu, raw.index, raw.value = access.vcpu, access.index, access.value
        raw.op, raw.reason = OPS[access.op], REASONS[access.reason]
        table = lib.kvmsr_enter(cpu)
        lib.kvmsr_evaluate(cpu, table, ffi.addressof(raw), ffi.addressof(cpu, "outcome"))
        return self._rest(cpu)

    def refused(self, vcpu, reason):
        cpu = self.cpus[vcpu]
        lib.kvmsr_refused(
            cpu, lib.kvmsr_enter(cpu), ffi.addressof(cpu, "access"), REASONS[reason],
            ffi.addressof(cpu, "outcome"),
        )  # fmt: skip
        return self._rest(cpu)

    def _rest(self, cpu):
        lib.kvmsr_leave(cpu)
        raw = cpu.access
        access = made_access(raw.value, raw.vcpu, raw.index, raw.op, raw.reason)
        if cpu.outcome.verdict == lib.KVMSR_UPCALL:
            return access, self.side.answer(access, cpu.outcome)
        outcome = outcome_of(cpu.outcome, self.names)
        if cpu.outcome.log:
            self.side.log(access, cpu.outcome)
        return access, outcome

    def record(self, vcpu):
        cpu = self.cpus[vcpu]
        access, outcome = ffi.addressof(cpu, "access"), ffi.addressof(cpu, "outcome")
        lib.kvmsr_record(cpu, access, outcome, ffi.new("int *"))


class Python:
    """Answers with the dispatcher alone."""

    def __init__(self, plan, logged, clock):
        self.summaries = [Summary(rip=lambda: RIP) for _ in range(4)]  # one per vCPU, as in a run
        self.dispatcher = Dispatcher(
            plan,
            vcpus=4,
            clock=lambda: clock.now,
            rip=lambda vcpu: RIP,
            where=lambda vcpu: WHERE,
            log=lambda a, o, text: logged.append(text),
        )

    def handle(self, access):
        access = self.dispatcher.restated(access)
        return access, self.dispatcher.handle(access)

    def refused(self, access, passed, reason):
        access = access._replace(reason=reason)
        return access, self.dispatcher.refused(access, passed)


def rows(summary):
    return [row.as_dict() for row in summary]


@settings(max_examples=400)
@given(policies, accesses, st.booleans())
def test_c_and_python_agree(policy, asked, ignore_msrs):
    """The same outcomes, reasons, state, log lines, rows, and accesses seen by handlers."""
    SEEN.clear()
    plan = compile_policy(policy, KernelFacts(ignore_msrs=ignore_msrs))
    logged, logged_by_c = [], []
    clock = Clock()
    python, native = Python(plan, logged, clock), Native(plan, logged_by_c, clock)
    with native.block:
        for access, reason, time in asked:
            clock.now += time
            expected = python.handle(access)
            assert native.handle(access) == expected
            if expected[1].verdict is Verdict.KERNEL:
                expected = python.refused(*expected, reason)
                assert native.refused(access.vcpu, reason) == expected
            if expected[1].verdict is not Verdict.KERNEL:
                python.summaries[access.vcpu].record(*expected)
                native.record(access.vcpu)
        assert same(native.side.state()) == same(python.dispatcher.state())
        assert logged_by_c == logged
        assert SEEN[::2] == SEEN[1::2]
        assert rows(native_summary(native.block, native.names)) == rows(
            Summary.merged(python.summaries)
        )
        kept = python.dispatcher.state()
        native.side.restore(kept)
        assert same(native.side.state()) == same(kept)
