# SPDX-License-Identifier: Apache-2.0
"""KVM's own MSRs: gates, illegal values, and what the guest finds in its memory."""

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.backend.soft.clock import scale
from tests.backend.soft.msr.handler_vcpu import (
    AMD_61,
    HOST,
    INVALID,
    NEWEST,
    OK,
    PVM,
    UNSUPPORTED,
    HandlerVcpu,
    cpuid,
    with_lapic,
)  # fmt: skip

WALL_CLOCK, SYSTEM_TIME, WALL_CLOCK_NEW, SYSTEM_TIME_NEW = 0x11, 0x12, 0x4B564D00, 0x4B564D01
ASYNC_PF_EN, STEAL_TIME, PV_EOI, POLL_CONTROL, ASYNC_PF_INT, ASYNC_PF_ACK = range(
    0x4B564D02, 0x4B564D08
)
GATES = {
    WALL_CLOCK: 0, SYSTEM_TIME: 0, WALL_CLOCK_NEW: 3, SYSTEM_TIME_NEW: 3, ASYNC_PF_EN: 4,
    STEAL_TIME: 5, PV_EOI: 6, POLL_CONTROL: 12, ASYNC_PF_INT: 14, ASYNC_PF_ACK: 14,
}  # fmt: skip
MAPPED, UNMAPPED = 0x1000, 0x200000


def pvclock(vcpu, at=0):
    """Return version, TSC, system time, multiplier, shift and flags."""
    version, pad, *rest = struct.unpack_from("<IIQQIbB", vcpu.vm.memory, at)
    assert pad == 0
    return version, *rest


def nanoseconds(cycles, multiplier, shift):
    """Turn cycles into time as a guest does (pvclock_scale_delta)."""
    shifted = cycles << shift if shift >= 0 else cycles >> -shift
    return shifted * multiplier >> 32


@pytest.mark.parametrize(("index", "feature"), GATES.items())
def test_cpuid_counts_once_it_is_enforced(index, feature):
    entries = cpuid(pv=0x0100_7FFB & ~(1 << feature))
    vcpu = with_lapic(cpuid_entries=entries)
    assert vcpu.read(index)[0] == vcpu.write(index, 0) == OK
    vcpu.enforce_pv_cpuid = True
    assert vcpu.read(index)[0] == vcpu.write(index, 0) == vcpu.write(index, 0, HOST) == UNSUPPORTED
    vcpu = with_lapic(cpuid_entries=cpuid(pv=1 << feature))
    vcpu.enforce_pv_cpuid = True
    assert vcpu.read(index)[0] == vcpu.write(index, 0) == OK


@pytest.mark.parametrize("index", [SYSTEM_TIME, SYSTEM_TIME_NEW])
def test_the_clock_says_what_time_it_is(index):
    vcpu = HandlerVcpu()
    assert vcpu.write(index, MAPPED | 0x41) == OK
    version, tsc, system_time, multiplier, shift, _ = pvclock(vcpu, 0x40)
    assert version and not version & 1
    assert (tsc, system_time) == (5_000, 7_000)
    assert nanoseconds(123_456_789, multiplier, shift) == 123_456_789
    assert vcpu.read(index) == (OK, MAPPED | 0x41)


def test_a_clock_that_is_not_enabled_is_not_written():
    vcpu = HandlerVcpu()
    assert vcpu.write(SYSTEM_TIME_NEW, MAPPED) == OK
    assert not any(vcpu.vm.memory)
    assert vcpu.write(SYSTEM_TIME_NEW, UNMAPPED | 1) == OK


@pytest.mark.parametrize(
    ("old", "new"), [(SYSTEM_TIME, SYSTEM_TIME_NEW), (WALL_CLOCK, WALL_CLOCK_NEW)]
)
def test_old_and_new_names_are_of_one_msr(old, new):
    vcpu = HandlerVcpu()
    for written, read in ((old, new), (new, old)):
        vcpu.write(written, written & 0xFF0)
        assert vcpu.read(read) == (OK, written & 0xFF0)


@pytest.mark.parametrize(("index", "value"), [(0x10, 1_000_000), (0x3B, 77_777)])
def test_the_clock_goes_on_when_the_tsc_moves(index, value):
    vcpu = HandlerVcpu(NEWEST, "tsc_adjust")
    vcpu.write(SYSTEM_TIME_NEW, MAPPED | 1)
    before = pvclock(vcpu)
    assert vcpu.write(index, value) == OK
    version, tsc, system_time, *_ = pvclock(vcpu)
    assert version == before[0] + 2
    assert (tsc, system_time) == (vcpu.clock.tsc(), 7_000)


def test_the_wall_clock_tells_when_the_vm_began():
    vcpu = HandlerVcpu()
    vcpu.clock.nanoseconds = 3_000_000_000
    assert vcpu.write(WALL_CLOCK_NEW, MAPPED) == OK
    version, seconds, rest = struct.unpack_from("<III", vcpu.vm.memory)
    assert version and not version & 1 and rest < 1_000_000_000
    assert abs(time.time() - 3 - (seconds + rest / 1e9)) < 60


@pytest.mark.parametrize("index", [WALL_CLOCK, WALL_CLOCK_NEW])
def test_a_restored_0_leaves_memory_alone(index):
    vcpu = HandlerVcpu()
    vcpu.vm.memory[:] = b"\xaa" * len(vcpu.vm.memory)
    assert vcpu.write(index, 0, HOST) == OK
    assert set(vcpu.vm.memory) == {0xAA}


@given(st.integers(1_000, 10_000_000))
def test_scale_is_what_guests_multiply_by(khz):
    multiplier, shift = scale(khz)
    assert 1 << 31 <= multiplier < 1 << 32
    second = nanoseconds(khz * 1000, multiplier, shift)
    assert abs(second - 1_000_000_000) <= 1_000_000_000 // (khz * 1000) + 2


@pytest.mark.parametrize(
    ("index", "value", "result"),
    [
        (STEAL_TIME, MAPPED | 1, OK), (STEAL_TIME, MAPPED | 3, INVALID),
        (STEAL_TIME, 0x21, INVALID),
        (PV_EOI, MAPPED | 1, OK), (PV_EOI, MAPPED | 2, INVALID), (PV_EOI, UNMAPPED | 1, INVALID),
        (PV_EOI, UNMAPPED, OK), (POLL_CONTROL, 0, OK), (POLL_CONTROL, 1, OK),
        (POLL_CONTROL, 2, INVALID), (ASYNC_PF_EN, 0x10, INVALID), (ASYNC_PF_EN, 0x20, INVALID),
        (ASYNC_PF_EN, MAPPED | 9, OK), (ASYNC_PF_EN, UNMAPPED | 9, INVALID),
        (ASYNC_PF_EN, UNMAPPED | 8, OK), (ASYNC_PF_INT, 0xFF, OK), (ASYNC_PF_INT, 0x100, INVALID),
        (ASYNC_PF_EN, UNMAPPED | 1, OK),
    ],
)  # fmt: skip
@pytest.mark.parametrize("profile", [AMD_61, NEWEST, PVM])
def test_values(profile, index, value, result):
    vcpu = with_lapic(profile)
    before = vcpu.read(index)
    assert vcpu.write(index, value) == result
    assert vcpu.read(index) == ((OK, value) if result == OK else before)


def test_async_pf_needs_the_lapic():
    vcpu = HandlerVcpu()
    assert (vcpu.write(ASYNC_PF_EN, 0), vcpu.write(ASYNC_PF_EN, 8)) == (OK, INVALID)
    assert vcpu.write(ASYNC_PF_INT, 0) == vcpu.write(ASYNC_PF_INT, 0, HOST) == INVALID


@pytest.mark.parametrize(("bit", "feature"), [(4, 10), (8, 14)])
def test_async_pf_bits_have_features_of_their_own(bit, feature):
    vcpu = with_lapic(cpuid_entries=cpuid(pv=1 << 4))
    assert vcpu.write(ASYNC_PF_EN, bit) == OK
    vcpu.enforce_pv_cpuid = True
    assert vcpu.write(ASYNC_PF_EN, bit) == INVALID
    vcpu = with_lapic(cpuid_entries=cpuid(pv=1 << 4 | 1 << feature))
    vcpu.enforce_pv_cpuid = True
    assert vcpu.write(ASYNC_PF_EN, bit) == OK


def test_async_pf_ack_reads_0():
    vcpu = HandlerVcpu()
    assert (vcpu.write(ASYNC_PF_ACK, 1), vcpu.read(ASYNC_PF_ACK)) == (OK, (OK, 0))
