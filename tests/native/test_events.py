"""Events come out of the rings, whatever the VMM writes there."""

import numpy as np
import pytest

from kvmsr import native

pytestmark = pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")

if native.available():
    from kvmsr.native import ffi, lib
    from kvmsr.native.block import Block
    from kvmsr.native.events import Rings
    from kvmsr.native.table import Names

VCPUS = 20


@pytest.fixture
def block():
    with Block(VCPUS) as made:
        yield made


def filled(block, count):
    """Return vCPUs whose rings are full of events for MSR 0x35, *count* of which are waiting."""
    vm = block.take_vm()
    vcpus = [block.new_cpu(vm, number).shared for number in range(VCPUS)]
    rings = Rings(block, Names(["kernel", "policy.toml:2"]), None)
    for vcpu in vcpus:
        ring = np.frombuffer(ffi.buffer(vcpu.events), rings.event)
        ring["index"], ring["name"], ring["traced"] = 0x35, 1, 1
        vcpu.head = count
    return rings, vcpus


def test_all_come_out_in_order(block):
    rings, vcpus = filled(block, 0)
    for number, vcpu in enumerate(vcpus):
        ring = np.frombuffer(ffi.buffer(vcpu.events), rings.event)
        ring["value"], ring["vcpu"] = np.arange(len(ring)), number
        vcpu.head = 100 + number
    rows = np.concatenate(list(rings.take()))
    for number in range(VCPUS):
        assert rows["value"][rows["vcpu"] == number].tolist() == list(range(100 + number))
    assert not list(rings.take())


def test_a_vmm_that_is_always_ahead_does_not_hold_the_controller_up(block):
    rings, vcpus = filled(block, 1 << 40)
    for _ in range(3 * VCPUS):
        count = 0
        for rows in rings.take():
            count += len(rows)
            for vcpu in vcpus:
                vcpu.head += 1 << 30
        assert 0 < count < 500_000
    assert all(vcpu.tail for vcpu in vcpus)  # each has its turn


@pytest.mark.parametrize(
    ("field", "value"), [("op", 7), ("reason", 9), ("verdict", 200), ("name", 5000), ("vm", 4000)]
)
def test_nonsense_is_left_out(block, field, value):
    rings, vcpus = filled(block, 10)
    ring = np.frombuffer(ffi.buffer(vcpus[0].events), rings.event)
    ring[field][3] = value
    rows = np.concatenate(list(rings.take()))
    assert len(rows) == 10 * VCPUS - 1


def test_the_last_event_of_a_lap_is_not_lost(block):
    rings, vcpus = filled(block, 0)
    for vcpu in vcpus:
        vcpu.head = vcpu.tail = lib.KVMSR_EVENTS - 3
        vcpu.head += 7
    assert sum(map(len, rings.take())) == 7 * VCPUS
