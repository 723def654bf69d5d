# SPDX-License-Identifier: Apache-2.0
"""What the vCPUs of a VM have in common: time."""

from types import SimpleNamespace

import pytest

from kvmsr import backend
from kvmsr.abi import Mp
from kvmsr.backend.soft.profile import find_profile
from kvmsr.backend.soft.vm import Vm
from kvmsr.kvm import Kvm

LATER = 10_000_000_000  # nanoseconds


def vm_with(*vcpus):
    """Return a VM of vCPUs that sleep, with a timer; *vcpus* say whether they have what ends it."""
    vm = Vm(find_profile("linux-6.18-amd"), real_time=False)
    vm.timers.add(SimpleNamespace(deadline=LATER))
    for number, wakes in enumerate(vcpus):
        vm.vcpus[number] = SimpleNamespace(
            wakes=wakes, looks_for_signals=False, sleep=lambda seconds: None
        )
    return vm


@pytest.mark.parametrize("wakes", [False, True])
def test_time_does_not_jump_while_a_vcpu_wakes_up(wakes):
    """What it is woken for comes before the next timer, though its thread still waits."""
    vm = vm_with(wakes, False)
    with vm.lock:
        vm.wait_for_change(vm.vcpus[1])
    assert (vm.clock.now() < LATER) == wakes


@pytest.mark.parametrize("event", ["init", "sipi", "unhalt"])
def test_a_vcpu_that_sleeps_wakes_for(event):
    kvm = Kvm(backend.open("soft"))
    vm = kvm.create_vm()
    vm.create_irqchip()
    vcpu = kvm.backend._objects[vm.create_vcpu(0).fd]
    vcpu.mp_state = Mp.INIT_RECEIVED if event == "sipi" else Mp.HALTED
    assert not vcpu.wakes
    with vcpu.vm.lock:
        getattr(vcpu, event)(*([8] if event == "sipi" else []))
    assert vcpu.wakes
