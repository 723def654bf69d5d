"""Conditions, scope, bits, host and log, against a reference that walks the policy rule by rule."""

import errno
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsr.dispatch import Dispatcher, Verdict
from kvmsr.dispatch.log import AccessLog
from kvmsr.errors import FilterCapacityError, PolicyError, UsageError
from kvmsr.msr import HandledRange
from kvmsr.policy import Access, Defaults, Host, Log, Op, Policy, Reason, Rule, Topology
from kvmsr.policy import Counter as Ticks
from kvmsr.policy.plan import KernelFacts, compile_policy
from tests.policy.plan.test_filter import kvm_allows
from tests.policy.test_bits import Reference as BitByBit

KNOWN, ALSO_KNOWN, UNKNOWN = 0x100, 0x101, 0x5000
KERNEL = KernelFacts((HandledRange(KNOWN, ALSO_KNOWN, True, True),))
OPS = {Op.READ: "reads", Op.WRITE: "writes"}
VCPUS = 4


class Walker:
    """The policy's meaning as documented: tries rule after rule, compiles nothing."""

    def __init__(self, policy, rip):
        self.policy, self.rip = policy, rip
        self.counts, self.shadows = Counter(), {}

    def rules(self, access):
        for rule in self.policy.rules:
            inside = any(first <= access.index <= last for first, last in rule.msrs)
            if inside and rule.action(access.op) is not None:
                yield rule

    def holds(self, rule, access):
        when = rule.when
        if when is None:
            return True
        if when.vcpu is not None and access.vcpu not in when.vcpu:
            return False
        if when.cpl is not None and 0 not in when.cpl:
            return False
        if when.reason is not None and access.reason not in when.reason:
            return False
        mask = (1 << 64) - 1 if when.mask is None else when.mask
        if when.value is not None and access.value & mask != when.value:
            return False
        if when.rip is not None and not when.rip[0] <= self.rip(access.vcpu) <= when.rip[1]:
            return False
        if when.after is None and when.every is None:
            return True
        key = id(rule), access.op
        self.counts[key] += 1
        n = self.counts[key]
        if when.after is None:
            return n % when.every == 0
        return n >= when.after and (n - when.after) % (when.every or 1) == 0

    def handle(self, access):
        for rule in self.rules(access):
            if self.holds(rule, access):
                return self.act(rule, access)
        return self.kernel(access, "kernel")

    def refused(self, access, by):
        for rule in self.rules(access):
            if rule.when is None or rule.where == by:
                break
            waits = rule.when.reason is not None and Reason.FILTER not in rule.when.reason
            if waits and self.holds(rule, access):
                return self.act(rule, access)
        return self.kernel(access, "")

    def kernel(self, access, by):
        if access.reason is Reason.FILTER:
            return "kernel", by, 0
        name = "unknown" if access.reason is Reason.UNKNOWN else "invalid"
        return self.plain(getattr(self.policy.defaults, name), f"defaults.{name}", access, None)

    def act(self, rule, access):
        action = rule.action(access.op)
        if action == "kernel":
            return self.kernel(access, rule.where)
        if hasattr(action, "value") and not isinstance(action, str):
            return "value", rule.where, action.value
        return self.plain(action, rule.where, access, rule)

    def plain(self, action, where, access, rule):
        done = "value" if access.op is Op.READ else "done"
        if action == "shadow":
            register = self.register(access, rule)
            if access.op is Op.READ:
                return "value", where, register.read()
            return ("done" if register.write(access.value) else "fault"), where, 0
        return {"fault": "fault", "stop": "stop", "ignore": done}[action], where, 0

    def register(self, access, rule):
        topology = self.policy.topology
        core = access.vcpu // topology.threads_per_core
        unit = {
            "thread": access.vcpu,
            "core": core,
            "package": core // (topology.cores_per_package or 1_000_000),
            "vm": 0,
        }[rule.scope if rule else "thread"]
        key = (str(rule.scope) if rule else "thread", unit, access.index)
        register = self.shadows.get(key)
        if register is None:
            register = self.shadows[key] = BitByBit([], 0)
            register.written = None
        # Two rules may give the same register different bits; it still has one value.
        bits = dict.fromkeys(range(64), "rw")
        if rule and rule.bits:
            for kind, mask in rule.bits._asdict().items():
                bits |= {n: kind for n in range(64) if mask >> n & 1}
        register.kinds = list(bits.values())
        return Held(register, rule.reset if rule else 0)


class Held:
    """A bit-by-bit register that has its reset value until a value is stored in it."""

    def __init__(self, register, reset):
        self.register, self.reset = register, reset

    def _load(self):
        value = self.reset if self.register.written is None else self.register.written
        self.register.bits = [value >> n & 1 for n in range(64)]
        return value

    def read(self):
        before = self._load()
        assert self.register.read() == before
        if self.register.value() != before:
            self.register.written = self.register.value()
        return before

    def write(self, value):
        self._load()
        done = self.register.write(value)
        if done:
            self.register.written = self.register.value()
            if "once" not in self.register.kinds:
                self.register.untouched = True  # no "once" bit has been used up
        return done


small = st.integers(0, 7)
plain = st.sampled_from(["kernel", "fault", "ignore", "shadow", "stop"])
kinds = st.sampled_from(["rw", "ro", "fault", "w1c", "w1s", "once", "lock", "rc"])


@st.composite
def conditions(draw, writes):
    asked = {
        "vcpu": st.lists(st.integers(0, VCPUS - 1), min_size=1, max_size=2),
        "cpl": st.sampled_from([0, 3]),
        "rip": st.sampled_from(["0-1", "2-3", "1-9"]),
        "after": st.integers(1, 3),
        "every": st.integers(1, 3),
        "reason": st.lists(st.sampled_from([str(r) for r in Reason]), min_size=1, max_size=2),
    }
    if writes:
        asked["value"] = small
    chosen = draw(st.lists(st.sampled_from(sorted(asked)), min_size=1, max_size=2, unique=True))
    return {key: draw(asked[key]) for key in chosen}


@st.composite
def rules(draw):
    msr = draw(
        st.sampled_from([KNOWN, ALSO_KNOWN, UNKNOWN, f"{KNOWN}-{UNKNOWN}", [KNOWN, UNKNOWN]])
    )
    read = draw(st.none() | plain | small)
    write = draw(plain if read is None else st.none() | plain)
    extra = {}
    if "shadow" in (read, write):
        extra["reset"] = draw(small)
        extra["scope"] = draw(st.sampled_from(["thread", "core", "package", "vm"]))
        if draw(st.booleans()):
            extra["bits"] = {"0": draw(kinds), "1": draw(kinds), "2": draw(kinds)}
    when = draw(st.none() | conditions(writes=read is None))
    return Rule(msr, read, write, when=when, **extra)


accesses = st.lists(
    st.tuples(
        st.integers(0, VCPUS - 1),
        st.sampled_from(list(Op)),
        st.sampled_from([KNOWN, ALSO_KNOWN, UNKNOWN]),
        small,
        st.sampled_from([Reason.UNKNOWN, Reason.INVALID]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=12,
)


@given(
    st.lists(rules(), max_size=5),
    st.builds(
        Defaults,
        st.sampled_from(["fault", "ignore", "shadow", "stop"]),
        st.sampled_from(["fault", "ignore", "shadow", "stop"]),
    ),
    st.builds(Topology, st.integers(1, 2), st.none() | st.integers(1, 2)),
    accesses,
)
@settings(max_examples=200)
def test_the_dispatcher_does_what_walking_the_policy_does(rules, defaults, topology, steps):
    policy = Policy(rules, defaults, topology=topology)
    try:
        plan = compile_policy(policy, KERNEL)
    except FilterCapacityError:
        return
    rips = {}
    d = Dispatcher(plan, vcpus=VCPUS, rip=rips.__getitem__)
    walker = Walker(policy, rips.__getitem__)
    for vcpu, op, index, value, reason, rip in steps:
        rips[vcpu] = rip
        if not kvm_allows(plan.filter, index, OPS[op]):
            reason = Reason.FILTER
        elif index == UNKNOWN:
            reason = Reason.UNKNOWN
        access = Access(vcpu, op, index, 0 if op is Op.READ else value, reason)
        got, wanted = d.handle(access), walker.handle(access)
        assert (got.verdict.value, got.rule, got.value) == wanted
        if got.verdict is Verdict.KERNEL:
            why = Reason.UNKNOWN if index == UNKNOWN else Reason.INVALID
            access = access._replace(reason=why)
            got, wanted = d.refused(access, got), walker.refused(access, wanted[1])
            assert (got.verdict.value, got.rule, got.value) == wanted


def test_kernel_means_that_no_later_rule_is_asked():
    rules = [
        Rule(KNOWN, read="kernel", when={"vcpu": 0}),
        Rule(KNOWN, read=5, when={"reason": "invalid"}),
        Rule(KNOWN, read=1, when={"vcpu": 2}),
    ]
    d = Dispatcher(compile_policy(Policy(rules), KERNEL), vcpus=VCPUS)
    for vcpu, passed_by, after in ((0, "rule[0]", "defaults.invalid"), (1, "kernel", "rule[1]")):
        access = Access(vcpu, Op.READ, KNOWN, 0, Reason.FILTER)
        passed = d.handle(access)
        assert passed.rule == passed_by
        assert d.refused(access._replace(reason=Reason.INVALID), passed).rule == after


def test_no_two_scopes_share_a_register():
    scopes = ["thread", "core", "package", "vm"]
    rules = [
        Rule(KNOWN, "shadow", "shadow", scope=scope, when={"rip": str(n)})
        for n, scope in enumerate(scopes)
    ]
    rip = [0]
    plan = compile_policy(Policy(rules, topology=Topology(2, 2)), KERNEL)
    d = Dispatcher(plan, vcpus=16, rip=lambda vcpu: rip[0])
    expected = {}
    for n, scope in enumerate(scopes):
        for vcpu in range(16):
            unit = {"thread": vcpu, "core": vcpu // 2, "package": vcpu // 4, "vm": 0}[scope]
            rip[0], value = n, 100 * n + vcpu
            d.handle(Access(vcpu, Op.WRITE, KNOWN, value, Reason.FILTER))
            expected[n, unit] = value
    for n, scope in enumerate(scopes):
        for vcpu in range(16):
            unit = {"thread": vcpu, "core": vcpu // 2, "package": vcpu // 4, "vm": 0}[scope]
            rip[0] = n
            access = Access(vcpu, Op.READ, KNOWN, 0, Reason.FILTER)
            assert d.handle(access).value == expected[n, unit]


def test_state_of_shadows_survives():
    rule = Rule(1, read="shadow", write="shadow", bits={"0": "once", "*": "rw"})
    one = Dispatcher(compile_policy(Policy([rule])))
    one.handle(Access(0, Op.WRITE, 1, 4, Reason.UNKNOWN))
    other = Dispatcher(compile_policy(Policy([rule])))
    other.shadows.restore(one.shadows.state())
    other.handle(Access(0, Op.WRITE, 1, 3, Reason.UNKNOWN))  # bit 0 has had its write
    assert other.handle(Access(0, Op.READ, 1, 0, Reason.UNKNOWN)).value == 2


def test_counting_goes_on_in_another_run():
    rule = Rule(1, read=7, when={"every": 3})
    access = Access(0, Op.READ, 1, 0, Reason.UNKNOWN)
    one = Dispatcher(compile_policy(Policy([rule])), clock=lambda: 0)
    one.handle(access)
    one.handle(access)
    state = json.loads(json.dumps(one.state()))
    other = Dispatcher(compile_policy(Policy([rule])))
    other.restore(state)
    assert one.state() == state  # asking does not count
    assert [other.handle(access).value for _ in range(4)] == [7, 0, 0, 7]
    with pytest.raises(PolicyError, match="another policy: its conditions differ"):
        Dispatcher(compile_policy(Policy())).restore(state)


def test_a_counter_counts_by_itself_and_is_set_by_writes():
    now = 10**9
    rule = Rule(0xE7, read=Ticks(2_000_000_001), write=Ticks(2_000_000_001), reset=5, scope="vm")
    made = Dispatcher(compile_policy(Policy([rule])), vcpus=2, clock=lambda: now)

    def read(dispatcher, vcpu):
        return dispatcher.handle(Access(vcpu, Op.READ, 0xE7, 0, Reason.UNKNOWN)).value

    assert read(made, 0) == 5
    now += 3 * 10**9 // 2
    assert read(made, 0) == 5 + 3_000_000_001
    made.handle(Access(1, Op.WRITE, 0xE7, (1 << 64) - 1, Reason.UNKNOWN))
    now += 1
    assert [read(made, 0), read(made, 1)] == [1, 1]  # one for the VM; it wraps
    state = json.loads(json.dumps(made.state()))
    now = 17  # another host
    other = Dispatcher(compile_policy(Policy([rule])), vcpus=2, clock=lambda: now)
    other.restore(state)
    assert read(other, 0) == 1
    now += 10**9
    assert read(other, 1) == 2_000_000_002


def test_a_register_with_bits_that_finds_no_room_faults():
    rule = Rule("0x5000-0x5fff", read="shadow", write="shadow", reset=3, bits={"0": "rc"})
    d = Dispatcher(compile_policy(Policy([rule])))
    d.shadows._limit = 1
    verdicts = [
        d.handle(Access(0, Op.READ, 0x5000 + n, 0, Reason.UNKNOWN)).verdict for n in range(2)
    ]
    assert verdicts == [Verdict.VALUE, Verdict.FAULT]
    assert d.handle(Access(0, Op.WRITE, 0x5003, 0, Reason.UNKNOWN)).verdict is Verdict.FAULT
    assert d.shadows.refused == 2


# The host's registers


class Registers:
    def __init__(self):
        self.values = {(None, 0x17): 5, (3, 0x17): 7}

    def read(self, cpu, index):
        if index == 0x18:
            raise OSError(errno.EIO, "faulted")
        if index == 0x19:
            raise OSError(errno.EACCES, "not allowed")
        return self.values[cpu, index]

    def write(self, cpu, index, value):
        self.values[cpu, index] = value


def test_the_hosts_registers_answer():
    rules = [
        Rule("0x17-0x19", read=Host(), write=Host(), when={"vcpu": 0}),
        Rule(0x17, read=Host(3)),
    ]
    policy = Policy(rules, allow_host_writes=True)
    d = Dispatcher(compile_policy(policy), host=Registers())

    def read(index, vcpu=0):
        return d.handle(Access(vcpu, Op.READ, index, 0, Reason.FILTER))

    assert read(0x17) == (Verdict.VALUE, "rule[0]", 5)
    assert read(0x17, vcpu=1) == (Verdict.VALUE, "rule[1]", 7)
    assert d.handle(Access(0, Op.WRITE, 0x17, 9, Reason.FILTER)).verdict is Verdict.DONE
    assert read(0x17).value == 9
    assert read(0x18) == (Verdict.FAULT, "rule[0]", 0)  # as the host's CPU did
    assert not d.failures
    assert read(0x19).rule == "defaults.on_error"
    assert d.failures[0].handler == "host same-cpu"


def test_guests_write_the_hosts_registers_only_where_the_policy_says_so():
    with pytest.raises(PolicyError, match=r"rule\[0\].write: .*allow_host_writes = true"):
        Policy([Rule(1, write=Host())])


@pytest.mark.parametrize(
    ("rule", "piece"),
    [(Rule(1, read=Host()), "host="), (Rule(1, read=1, when={"rip": "5"}), "rip=")],
)
def test_what_a_policy_needs_must_be_given(rule, piece):
    with pytest.raises(UsageError, match=piece):
        Dispatcher(compile_policy(Policy([rule])))


# Logging


def logged(rules, steps, **defaults):
    lines = []
    plan = compile_policy(Policy(rules, Defaults(**defaults)))
    d = Dispatcher(plan, log=lambda access, outcome, line: lines.append(line))
    for op, index, value in steps:
        d.handle(Access(0, Op(op), index, value, Reason.UNKNOWN))
    return lines


W, R = "write", "read"


@pytest.mark.parametrize(
    ("log", "values", "expected"),
    [
        ("never", [1, 1, 2], []),
        ("once", [1, 1, 2], [1]),
        ("change", [1, 1, 2, 2, 1], [1, 2, 1]),
        ("always", [1, 1, 2], [1, 1, 2]),
        (None, [1, 1, 2], []),
    ],
)
def test_what_a_rule_logs(log, values, expected):
    rule = Rule(0x5000, write="shadow", log=log)
    lines = logged([rule], [(W, 0x5000, value) for value in values])
    assert lines == [
        f"vCPU 0: write of {value:#x} to MSR 0x5000: done (rule[0]; unknown)" for value in expected
    ]


def test_defaults_and_faults_are_logged_once_unless_the_rule_says_otherwise():
    rules = [Rule(0x35, read="fault"), Rule(0x36, read="fault", log="never")]
    steps = [(R, index, 0) for index in (0x35, 0x35, 0x36, 0x5000, 0x5000)]
    assert logged(rules, steps, unknown="ignore") == [
        "vCPU 0: read of MSR 0x35 (MSR_CORE_THREAD_COUNT): #GP(0) (rule[0]; unknown)",
        "vCPU 0: read of MSR 0x5000: 0x0 (defaults.unknown; unknown)",
    ]


def test_a_guest_cannot_make_the_log_grow_without_end():
    lines = []
    log = AccessLog(lambda access, outcome, line: lines.append(line), max_marks=3)
    act = Dispatcher(compile_policy(Policy())).handle
    once, change = log.around(act, Log.ONCE), log.around(act, Log.CHANGE)
    for index in range(0x5000, 0x5010):
        once(Access(0, Op.READ, index, 0, Reason.UNKNOWN))
        change(Access(0, Op.READ, index, 0, Reason.UNKNOWN))
    assert len(lines) == 3 + 3 + 1
    assert lines[-1] == "3 MSRs have been logged: other MSRs are no longer logged"
