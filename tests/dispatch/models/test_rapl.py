"""RAPL: energy rises with the watts, wraps at 32 bits, and is counted in the unit's terms."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.dispatch.models import Cpu
from kvmsr.dispatch.models.energy import CpuTime, Powercap
from kvmsr.errors import PolicyError
from kvmsr.policy import Topology
from kvmsr.policy.form import FormError
from tests.dispatch.models.rig import FAULT, Rig

INTEL = [0x606, 0x610, 0x611, 0x614, 0x619, 0x639, 0x641]
AMD = ["0xc0010299-0xc001029b"]


def intel(**parameters):
    return Rig("rapl.intel", INTEL, **parameters)


@given(
    st.floats(0.1, 500),
    st.integers(1, 24),
    st.lists(st.floats(0, 100_000), min_size=1, max_size=8),
)
def test_energy_is_watts_times_seconds_modulo_32_bits(watts, unit, pauses):
    rig = intel(watts=watts, energy_unit=unit)
    assert rig.read(0x606) >> 8 & 0x1F == unit
    for pause in pauses:
        rig.seconds(pause)
        value = rig.read(0x611)
        assert value < 2**32
        expected = watts * (rig.time / 1e9) * 2**unit
        off = (value - expected) % 2**32
        assert min(off, 2**32 - off) <= 1 + expected * 1e-12


def test_domains_have_watts_of_their_own():
    rig = intel(watts=20, cores_watts=12.0, graphics_watts=1.5, memory_watts=3)
    rig.seconds(10)
    joules = [rig.read(index) / 2**14 for index in (0x611, 0x639, 0x641, 0x619)]
    assert joules == pytest.approx([200, 120, 15, 30], abs=1e-3)


def test_counters_cannot_be_written_and_limits_can_until_they_are_locked():
    rig = intel(tdp=65)
    assert rig.write(0x611, 0) == FAULT
    assert rig.read(0x614) & 0x7FFF == 65 * 8
    assert rig.read(0x610) == 65 * 8 | 1 << 15 | 0x6E << 17
    assert rig.write(0x610, 0x100 | 1 << 15) is None
    assert rig.read(0x610) == 0x8100
    assert rig.write(0x610, 1 << 24) == FAULT  # reserved
    assert rig.write(0x610, 1 << 63 | 0x200) is None
    assert rig.write(0x610, 0x300) == FAULT
    assert rig.read(0x610) == 1 << 63 | 0x200
    assert intel(locked=True).write(0x610, 0) == FAULT


LIMITS = [0x618, 0x638, 0x640]


def test_other_limits_are_stored_until_they_are_locked_and_throttle_nothing():
    rig = Rig("rapl.intel", [*LIMITS, 0x613, 0x61B, 0x61C, 0x63A, 0x642])
    for index in LIMITS:
        assert rig.read(index) == 0
        assert rig.write(index, 1 << 32) == FAULT
        assert rig.write(index, 1 << 31 | 0x8123) is None
        assert rig.write(index, 0) == FAULT
        assert rig.read(index) == 1 << 31 | 0x8123
    for index in (0x613, 0x61B, 0x61C):
        assert (rig.read(index), rig.write(index, 0)) == (0, FAULT)
    assert rig.write(0x63A, 0x1F) is None
    assert (rig.read(0x63A), rig.read(0x642)) == (0x1F, 0)


@pytest.mark.parametrize(
    ("signature", "given", "unit"),
    [(0x50654, {}, 16), (0x906EA, {}, 14), (0, {}, 14), (0x50654, {"memory_energy_unit": 20}, 20)],
)
def test_memory_is_counted_in_the_unit_of_the_cpus_model(signature, given, unit):
    """Skylake-SP has its own, Coffee Lake has not; a CPU that is not known has not either."""
    rig = intel(guest_cpu=Cpu(signature), memory_watts=3, **given)
    rig.seconds(10)
    assert rig.read(0x619) == 30 << unit


def test_a_cpus_model_is_its_family_and_extended_model():
    assert Cpu(0x50654).model == (6, 0x55)
    assert Cpu(0xA20F12).model == (0x19, 0x21)
    assert Cpu(0x513).model == (5, 1)


def test_an_amd_core_has_its_share():
    rig = Rig("rapl.amd", AMD, vcpus=4, topology=Topology(2), watts=32, cores_watts=20)
    rig.seconds(8)
    assert rig.read(0xC0010299) == 3 | 16 << 8 | 10 << 16
    assert rig.read(0xC001029B) == 32 * 8 << 16
    assert [rig.read(0xC001029A, vcpu) for vcpu in range(4)] == [10 * 8 << 16] * 4


def test_each_package_counts_alike():
    rig = intel(vcpus=4, topology=Topology(1, 2), watts=8)
    rig.seconds(1)
    assert rig.read(0x611, 0) == rig.read(0x611, 3) == 8 << 14


def test_cpu_time_costs_energy():
    spent = 0
    now = 0
    source = CpuTime(10, {"package": 2}, lambda: now, lambda: spent)
    spent, now = 3_000_000_000, 5_000_000_000
    assert source.joules("package") == pytest.approx(40)
    assert source.joules("cores") == pytest.approx(30)
    assert source.joules("memory") == 0
    rig = intel(source="cpu-time", watts=100)
    begun = time.process_time()
    while time.process_time() < begun + 0.05:
        pass
    assert rig.read(0x611) >= 5 * 2**14


def zone(folder, name, energy, limit=999_999):
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")


def test_the_hosts_own_counters_wrap_and_add_up(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path / "intel-rapl:1", "package-1", 0)
    zone(tmp_path / "intel-rapl:0:0", "core", 5)
    source = Powercap(tmp_path)
    assert source.joules("package") == 0
    (tmp_path / "intel-rapl:0/energy_uj").write_text("100000\n")
    (tmp_path / "intel-rapl:1/energy_uj").write_text("300000\n")
    (tmp_path / "intel-rapl:0:0/energy_uj").write_text("1005\n")
    assert source.joules("package") == pytest.approx(0.5)
    assert source.joules("cores") == pytest.approx(0.001)
    assert source.joules("memory") == 0


def test_a_host_without_counters_is_reported_before_the_guest_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no RAPL driver"):
        Powercap(tmp_path)


def test_the_count_goes_on_in_another_life():
    rig = intel(watts=10)
    rig.seconds(7)
    other = rig.reborn(intel(watts=10))
    other.seconds(1)
    assert other.read(0x611) == 80 << 14


def test_odd_parameters_are_refused():
    with pytest.raises(PolicyError, match=r"expected float >= 0\.0"):
        intel(watts=-1)
    with pytest.raises(FormError, match=r"Invalid enum value .sun."):
        intel(source="sun")
