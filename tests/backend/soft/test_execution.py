# SPDX-License-Identifier: Apache-2.0
"""The turns of several vCPUs, while exits are answered on the spot."""

import threading

import pytest

from kvmsr.backend.soft.execution import Execution
from kvmsr.machine import Boot, Machine
from kvmsr.policy import Policy, Rule
from tests.conftest import GUESTS

MSR = 0x474F4F00
CPUS = 3


def test_a_handler_may_wait_for_what_another_vcpu_does():
    together, values, met = threading.Barrier(CPUS), {}, set()

    def write(access):
        values[access.vcpu] = access.value
        if access.vcpu not in met:
            met.add(access.vcpu)
            together.wait(30)

    policy = Policy([Rule(MSR, read=lambda access: values[access.vcpu], write=write)])
    with Machine("soft", memory="4M", policy=policy, cpus=CPUS) as machine:
        machine.load(Boot(GUESTS / "smp.bin", mode=32))
        result = machine.run(60)
    assert (result.exit_status, result.failures, len(met)) == (1, (), CPUS)


class Turns:
    """What takes turns, and a thread that waits for its own."""

    def __init__(self):
        self.execution = Execution(threading.Condition())
        self.has_begun = threading.Event()
        self.thread = threading.Thread(target=self.wait, daemon=True)

    def wait(self):
        self.execution.take()
        self.has_begun.set()
        self.execution.pass_on()


@pytest.mark.parametrize("fails", [False, True])
def test_a_turn_is_lent_only_while_it_stands_still(fails):
    turns = Turns()
    turns.execution.take()
    turns.thread.start()
    while not turns.execution.contended:
        pass
    turns.execution.lend()  # what executes is no exit
    assert not turns.has_begun.wait(0.05)

    def serve():
        turns.execution.lend()  # it has begun just now
        assert not turns.has_begun.wait(0.05)
        turns.execution.lend()
        assert turns.has_begun.wait(10)
        if fails:
            raise ValueError("it failed")
        return True

    if fails:
        with pytest.raises(ValueError, match="it failed"):
            turns.execution.serving(serve)
    else:
        assert turns.execution.serving(serve)
    turns.thread.join(10)
    assert not turns.execution.contended
    turns.execution.pass_on()
    turns.execution.take()  # it was given back
