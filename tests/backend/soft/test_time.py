# SPDX-License-Identifier: Apache-2.0
"""What the vCPUs of a VM have in common: time."""

from types import SimpleNamespace

import pytest

from kvmsr.abi import Mp
from kvmsr.backend.soft.profile import find_profile
from kvmsr.backend.soft.vm import Vm

LATER = 10_000_000_000  # nanoseconds


class Sleeper(SimpleNamespace):
    """As much of a vCPU as time depends on: it has halted, and may have something to wake up to."""

    mp_state = Mp.HALTED
    masked = None

    def runnable(self):
        return self.wakes


@pytest.mark.parametrize("wakes", [False, True])
def test_time_does_not_jump_while_a_vcpu_wakes_up(wakes, monkeypatch):
    """What it is woken for comes before the next timer, though its thread still waits."""
    vm = Vm(find_profile("linux-6.18-amd"), real_time=False)
    timer = SimpleNamespace(deadline=LATER)
    vm.vcpus = {
        0: Sleeper(id=0, wakes=wakes, lapic=None),
        1: Sleeper(id=1, wakes=False, lapic=timer),
    }
    monkeypatch.setattr(vm.changed, "wait", lambda timeout: None)
    with vm.lock:
        vm.wait_for_change()
    assert (vm.clock.now() < LATER) == wakes


def test_time_does_not_jump_while_a_vcpu_is_to_start(monkeypatch):
    vm = Vm(find_profile("linux-6.18-amd"), real_time=False)
    timer = SimpleNamespace(deadline=LATER)
    vm.vcpus = {0: Sleeper(id=0, wakes=False, lapic=timer)}
    vm.pending_sipi.add(0)
    monkeypatch.setattr(vm.changed, "wait", lambda timeout: None)
    with vm.lock:
        vm.wait_for_change()
    assert vm.clock.now() < LATER
