"""A dispatcher with one model behind some MSRs, and a clock that the test sets."""

from kvmsr.dispatch import Dispatcher, Verdict
from kvmsr.msr import catalog
from kvmsr.policy import Access, Model, Op, Policy, Reason, Rule, Topology
from kvmsr.policy.plan import compile_policy

FAULT = "fault"


class Rig:
    def __init__(
        self, name, msrs, *, vcpus=1, topology=None, memory=None, guest_cpu=None, **parameters
    ):
        self.time = 0
        action = Model(name, **parameters)
        policy = Policy([Rule(msrs, read=action, write=action)], topology=topology or Topology())
        more = {} if memory is None else {"memory": memory}
        self.dispatcher = Dispatcher(
            compile_policy(policy), vcpus=vcpus, clock=lambda: self.time, cpu=guest_cpu, **more
        )

    @property
    def notes(self):
        return self.dispatcher.models.notes

    def seconds(self, seconds):
        self.time += int(seconds * 1e9)

    def _do(self, op, msr, value, vcpu):
        index = msr if isinstance(msr, int) else catalog().lookup(msr).index
        outcome = self.dispatcher.handle(Access(vcpu, op, index, value, Reason.UNKNOWN))
        assert self.dispatcher.failures == []
        return outcome

    def read(self, msr, vcpu=0):
        outcome = self._do(Op.READ, msr, 0, vcpu)
        return FAULT if outcome.verdict is Verdict.FAULT else outcome.value

    def write(self, msr, value, vcpu=0):
        outcome = self._do(Op.WRITE, msr, value, vcpu)
        return FAULT if outcome.verdict is Verdict.FAULT else None

    def reborn(self, other):
        """Restore this one's state into *other*, through JSON, and return *other*."""
        import json

        other.dispatcher.models.restore(json.loads(json.dumps(self.dispatcher.models.state())))
        return other
