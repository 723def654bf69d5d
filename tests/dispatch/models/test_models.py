"""Register models: writing one, sharing instances, and how a model's mistakes are reported."""

import threading
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from kvmsr.dispatch import Dispatcher, Verdict
from kvmsr.dispatch.models import Field, Register, RegisterModel, Scope, Topology
from kvmsr.errors import PolicyError
from kvmsr.policy import Access, Defaults, Fault, Model, Op, Policy, Reason, Rule
from kvmsr.policy.file import load_policy
from kvmsr.policy.plan import compile_policy
from kvmsr.policy.register_models import BUILT_IN, find_model
from tests.harness import machine_with

UNIT, COUNTER, STATUS = 0x606, 0x611, 0x19C


class Meter(RegisterModel):
    """Counts *rate* units per microsecond."""

    class Parameters(RegisterModel.Parameters):
        rate: Annotated[int, Meta(ge=1, le=1000)] = 1
        mode: Literal["fast", "slow"] = "fast"

        def __post_init__(self):
            if self.mode == "slow" and self.rate > 10:
                raise ValueError("slow meters have a rate of 10 at most")

    unit = Register("MSR_RAPL_POWER_UNIT", "ro", energy=Field("8-12", reset=14))
    counter = Register(COUNTER, "ro")
    status = Register(STATUS, scope="thread", others="fault", log=Field(1, "w1c", reset=1))

    def setup(self):
        self.begin = self.now()

    def read(self, register, access):
        if register is self.counter:
            return (self.now() - self.begin) // 1000 * self.parameters.rate
        return super().read(register, access)

    def state(self):
        return super().state() | {"elapsed": self.now() - self.begin}

    def restore(self, state):
        super().restore(state)
        self.begin = self.now() - state["elapsed"]


class Clock:
    now = 0

    def __call__(self):
        return self.now


def dispatcher(*rules, vcpus=4, topology=None, clock=None, **defaults):
    policy = Policy(rules, Defaults(**defaults), topology=topology)
    return Dispatcher(compile_policy(policy), vcpus=vcpus, clock=clock or Clock())


def read(index, vcpu=0):
    return Access(vcpu, Op.READ, index, 0, Reason.UNKNOWN)


def write(index, value, vcpu=0):
    return Access(vcpu, Op.WRITE, index, value, Reason.UNKNOWN)


def meter(index, **parameters):
    return Rule(index, read=Model(Meter, **parameters), write=Model(Meter, **parameters))


def test_a_model_answers_by_the_clock_it_is_given():
    clock = Clock()
    d = dispatcher(meter(COUNTER, rate=5), clock=clock)
    assert d.handle(read(COUNTER)) == (Verdict.VALUE, "rule[0]", 0)
    clock.now = 3_000
    assert d.handle(read(COUNTER)).value == 15


def test_declared_registers_keep_values_as_their_fields_say():
    d = dispatcher(meter([UNIT, STATUS]))
    assert d.handle(read(UNIT)).value == 14 << 8
    assert d.handle(write(UNIT, 0)).verdict is Verdict.FAULT  # it is read-only
    assert d.handle(read(STATUS)).value == 2
    assert d.handle(write(STATUS, 4)).verdict is Verdict.FAULT  # a reserved bit
    assert d.handle(write(STATUS, 2)).verdict is Verdict.DONE
    assert d.handle(read(STATUS)).value == 0
    assert d.handle(read(STATUS, vcpu=1)).value == 2  # the register has a scope of its own


def test_rules_with_the_same_parameters_share_one_instance_per_unit():
    d = dispatcher(
        meter(UNIT), meter(COUNTER), meter(STATUS, rate=2), topology=Topology(1, 2), vcpus=5
    )
    # Three packages, two sets of parameters.
    assert len(d.models.state()) == 6


def test_state_survives_in_another_run():
    clock, later = Clock(), Clock()
    d = dispatcher(meter([COUNTER, STATUS]), clock=clock)
    clock.now = 7_000
    d.handle(write(STATUS, 2))
    later.now = 1_000_000
    other = dispatcher(meter([COUNTER, STATUS]), clock=later)
    other.models.restore(d.models.state())
    assert other.handle(read(COUNTER)).value == 7
    assert other.handle(read(STATUS)).value == 0
    with pytest.raises(PolicyError, match="another policy; models that differ: "):
        dispatcher().models.restore(d.models.state())


class Broken(RegisterModel):
    class Parameters(RegisterModel.Parameters):
        how: str = "raise"

    it = Register(0x1234)

    def setup(self):
        if self.parameters.how == "setup":
            raise OSError("no such meter")

    def read(self, register, access):
        if self.parameters.how == "fault":
            raise Fault
        if self.parameters.how == "raise":
            raise KeyError("x")
        return 1 << 64

    def write(self, register, access):
        self.note("one\nnote")
        return 5


def broken(how):
    return Rule(0x1234, read=Model(Broken, how=how), write=Model(Broken, how=how))


def test_what_a_model_does_wrong_is_a_failed_handler():
    d = dispatcher(broken("raise"), on_error="ignore")
    assert d.handle(read(0x1234)) == (Verdict.VALUE, "defaults.on_error", 0)
    assert d.failures[0].message == "raised KeyError: 'x'"
    assert d.failures[0].handler.endswith(":Broken")
    d = dispatcher(broken("big"))
    assert d.handle(read(0x1234)).verdict is Verdict.FAULT
    assert "does not fit" in d.failures[0].message
    d = dispatcher(broken("fault"))
    assert d.handle(read(0x1234)) == (Verdict.FAULT, "rule[0]", 0)
    assert not d.failures


def test_a_model_that_cannot_be_set_up_is_reported_before_the_guest_runs():
    with pytest.raises(PolicyError, match=r"rule\[0\]: model .*Broken cannot be set up: OSError"):
        dispatcher(broken("setup"))


def test_models_tell_the_user_what_happened():
    d = dispatcher(broken("note"))
    for _ in range(200):
        d.handle(write(0x1234, 1))
    assert d.models.notes == ["one note"] * 100


def test_a_model_is_called_by_one_thread_at_a_time():
    class Slow(RegisterModel):
        it = Register(0x1234)
        inside = 0
        most = 0

        def read(self, register, access):
            Slow.inside += 1
            Slow.most = max(Slow.most, Slow.inside)
            threading.Event().wait(0.001)
            Slow.inside -= 1
            return 0

    d = dispatcher(Rule(0x1234, read=Model(Slow)))
    threads = [
        threading.Thread(target=lambda n=n: [d.handle(read(0x1234, n)) for _ in range(10)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.most == 1


@pytest.mark.parametrize(
    ("parameters", "piece"),
    [
        ({"rat": 1}, "did you mean 'rate'"),
        ({"rate": "1"}, "expected integer, got string"),
        ({"rate": 1001}, "<= 1000"),
        ({"mode": "quick"}, "nvalid enum value 'quick'"),
        ({"mode": "slow", "rate": 11}, "rate of 10 at most"),
    ],
)
def test_parameters_are_held_to_what_the_model_declares(parameters, piece):
    with pytest.raises(PolicyError, match=piece):
        Model(Meter, **parameters)


def test_a_rule_is_held_to_the_msrs_that_its_model_has():
    with pytest.raises(PolicyError, match=r"has no MSR 0x607; it has 0x19c, 0x606, 0x611"):
        Rule("0x606-0x611", read=Model(Meter))


def test_what_is_not_a_model_is_refused():
    with pytest.raises(PolicyError, match="is not a register model"):
        Model(int)
    with pytest.raises(PolicyError, match="there is no model 'meter'"):
        Model("meter")


def test_two_registers_cannot_be_the_same_msr():
    with pytest.raises(TypeError, match="0x10 is both a and b"):
        type("Twice", (RegisterModel,), {"a": Register(0x10), "b": Register("0x8-0x10")})


def test_no_register_is_wider_than_its_model():
    body = {"scope": Scope.CORE, "it": Register(0x10, scope="package")}
    with pytest.raises(TypeError, match="it has the scope package, wider than the model's, core"):
        type("Wide", (RegisterModel,), body)


def test_models_of_one_name_in_two_folders_keep_apart(tmp_path):
    for folder, index in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        text = (
            f"from kvmsr.dispatch.models import *\nclass M(RegisterModel):\n it = Register({index})"
        )
        (tmp_path / folder / "mine.py").write_text(text)
        action = '{ model = "mine:M" }'
        rule = f"[[rule]]\nmsr = {index}\nread = {action}\nwrite = {action}"
        (tmp_path / folder / "p.toml").write_text(rule)
    (tmp_path / "all.toml").write_text('[policy]\nextends = ["a/p.toml", "b/p.toml"]')
    plan = compile_policy(load_policy(tmp_path / "all.toml"))
    one, other = Dispatcher(plan), Dispatcher(plan)
    one.handle(write(1, 11))
    one.handle(write(2, 22))
    other.restore(one.state())
    assert [other.handle(read(index)).value for index in (1, 2)] == [11, 22]


class Uptime(RegisterModel):
    nanoseconds = Register(0x1234, "ro")

    def read(self, register, access):
        return self.now()


def test_the_clock_is_the_guests(any_backend, tmp_path):
    # mov $0x1234, %ecx; rdmsr; mov $0xffff, %cx; loop .; mov $0x1234, %ecx; rdmsr; out %al, $0xf4
    load = b"\x66\xb9\x34\x12\0\0"
    code = load + b"\x0f\x32" + b"\xb9\xff\xff\xe2\xfe" + load + b"\x0f\x32\xe6\xf4"
    policy = Policy([Rule(0x1234, read=Model(Uptime))])
    with machine_with(tmp_path, code, policy, any_backend) as machine:
        begun = machine.vm.get_clock().clock
        result = machine.run(timeout=30)
        ended = machine.vm.get_clock().clock
    (row,) = result.summary
    assert begun <= row.first_value < row.last_value <= ended


def test_a_subclass_may_add_and_replace_registers():
    class More(Meter):
        counter = Register(0x639, "ro")

    assert sorted(More.registers) == [STATUS, UNIT, 0x639]


def test_banks_are_registers_of_several_msrs():
    bank = Register("0x400-0x403", a=Field("0-3"), b=Field("63"))
    assert bank.number(0x402) == 2
    assert bank.pack(a=5, b=1) == 1 << 63 | 5
    assert bank.unpack(1 << 63 | 5) == {"a": 5, "b": 1}
    for wrong in ({"a": 16}, {"c": 1}):
        with pytest.raises(ValueError, match=r"field|fit"):
            bank.pack(**wrong)


USERS = """
from typing import Annotated
from kvmsr.dispatch.models import Field, Meta, Register, RegisterModel

class Fan(RegisterModel):
    class Parameters(RegisterModel.Parameters):
        rpm: Annotated[int, Meta(ge=0, le=9000)] = 1200

    speed = Register(0x1234, "ro", rpm=Field("0-15"))

    def read(self, register, access):
        return register.pack(rpm=self.parameters.rpm)
"""


def test_a_users_model_in_a_policy_file(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    (tmp_path / "p.toml").write_text(
        '[topology]\ncores_per_package = 2\n[[rule]]\nmsr = 0x1234\n'
        'read = { model = "mine:Fan", rpm = 900 }'
    )  # fmt: skip
    policy = load_policy(tmp_path / "p.toml")
    assert policy.topology == Topology(1, 2)
    d = Dispatcher(compile_policy(policy))
    assert d.handle(read(0x1234)) == (Verdict.VALUE, "p.toml:3", 900)


def test_a_users_model_for_both_directions_in_a_policy_file(tmp_path):
    text = USERS + "    limit = Register(0x1235)\n"
    (tmp_path / "mine.py").write_text(text)
    file = tmp_path / "p.toml"
    file.write_text('[[rule]]\nmsr = "0x1234-0x1235"\n[rule.model]\nname = "mine:Fan"\nrpm = 900')
    d = Dispatcher(compile_policy(load_policy(file)))
    assert d.handle(read(0x1234)).value == 900
    assert d.handle(write(0x1234, 5)).verdict is Verdict.FAULT
    assert d.handle(write(0x1235, 77)).verdict is Verdict.DONE


def test_a_users_model_that_cannot_be_said_once(tmp_path):
    file = tmp_path / "p.toml"
    (tmp_path / "only.py").write_text(USERS)
    file.write_text('[[rule]]\nmsr = 0x1234\nmodel = "only:Fan"')
    with pytest.raises(
        PolicyError, match=r'only serves reads: use it as read, with write = "fault"'
    ):
        load_policy(file)
    named = USERS.replace("rpm: Annotated[int, Meta(ge=0, le=9000)] = 1200", 'name: str = ""')
    (tmp_path / "named.py").write_text(named.replace('"ro", rpm', "rpm"))
    file.write_text('[[rule]]\nmsr = 0x1234\nmodel = { name = "named:Fan" }')
    with pytest.raises(PolicyError, match="has a parameter with this name: write read and write"):
        load_policy(file)


@pytest.mark.parametrize("name", BUILT_IN)
def test_models_that_come_with_kvmsr_are_there_and_say_what_they_are(name):
    cls = find_model(name)
    assert issubclass(cls, RegisterModel)
    assert cls.__doc__ and cls.registers
    assert isinstance(cls.scope, Scope)
