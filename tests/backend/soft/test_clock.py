"""KVM_GET_CLOCK and KVM_SET_CLOCK: kvmclock, and what else is told of the same moment."""

import errno
import time

import pytest

from kvmsr import backend
from kvmsr.abi import ioctls
from kvmsr.abi.vm import ClockData
from kvmsr.kvm import Kvm
from tests.conformance.registry import errno_of

TSC_STABLE, REALTIME, HOST_TSC = 2, 4, 8
SECOND = 1_000_000_000
TSC = 0x10


def get(vm):
    found = ClockData()
    vm.raw_ioctl(ioctls.KVM_GET_CLOCK, found)
    return found


def put(vm, **fields):
    return errno_of(vm.raw_ioctl, ioctls.KVM_SET_CLOCK, ClockData(**fields))


def test_without_vcpus_there_is_kvmclock_alone(world):
    vm = world().vm()
    assert put(vm, clock=5 * SECOND) == 0
    found = get(vm)
    assert found.clock >= 5 * SECOND
    assert (found.flags, found.realtime, found.host_tsc) == (0, 0, 0)


def test_with_them_it_tells_the_wall_clock_and_the_tsc(world):
    cpu = world().cpu()
    assert put(cpu.vm, clock=0) == 0
    before, tsc = time.time_ns(), cpu.get(TSC)
    found = get(cpu.vm)
    assert found.flags == TSC_STABLE | REALTIME | HOST_TSC
    assert before <= found.realtime <= time.time_ns()
    assert tsc <= found.host_tsc <= cpu.get(TSC)


@pytest.mark.parametrize(("ago", "passed"), [(180, 180), (0, 0), (-180, 0)])
def test_what_has_passed_since_the_wall_clock_was_read_counts(world, ago, passed):
    """It never steps back (kvm_vm_ioctl_set_clock)."""
    cpu = world().cpu()
    told = {"realtime": time.time_ns() - ago * SECOND, "flags": REALTIME}
    assert put(cpu.vm, clock=SECOND, **told) == 0
    assert 0 <= get(cpu.vm).clock - (1 + passed) * SECOND < 60 * SECOND


def test_what_was_got_can_be_set_and_nothing_else(world):
    vm = world().cpu().vm
    assert put(vm, flags=TSC_STABLE | REALTIME | HOST_TSC) == 0
    assert put(vm, flags=1) == put(vm, flags=0x10) == errno.EINVAL


def tsc_khz(name, **options):
    with Kvm(backend.open(name, **options)) as kvm:
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu(0)
        try:
            return vcpu.get_tsc_khz()
        finally:
            vcpu.close()
            vm.close()


@pytest.mark.kvm
def test_where_time_is_real_the_tsc_is_as_fast_as_the_hosts():
    assert tsc_khz("soft", real_time=True) == pytest.approx(tsc_khz("kvm"), rel=0.005)


def test_else_it_has_one_gigahertz():
    assert tsc_khz("soft") == 1_000_000
