"""APERF, MPERF and the registers that request a frequency, checked with turbostat's arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.dispatch.models import Cpu
from kvmsr.errors import PolicyError
from tests.dispatch.models.rig import FAULT, Rig

PAIR = [0xE7, 0xE8, 0xC00000E7, 0xC00000E8]
ALL = [*PAIR, 0xCE, 0x1AD, 0x198, 0x199, 0x1B0, 0x770, 0x771, 0x773, 0x774, 0x777]


def busy_mhz(rig, seconds, base):
    """Return turbostat's Bzy_MHz, and its Busy% as a fraction."""
    before = rig.read(0xE8), rig.read(0xE7)
    rig.seconds(seconds)
    aperf, mperf = rig.read(0xE8) - before[0], rig.read(0xE7) - before[1]
    return base * aperf / mperf, mperf / (base * 1e6 * seconds)


@given(st.integers(100, 9000), st.integers(100, 9000), st.floats(0.05, 1), st.floats(0.1, 1000))
def test_the_ratio_is_the_configured_frequency(base, mhz, busy, seconds):
    rig = Rig("aperf-mperf", PAIR, base_mhz=base, mhz=mhz, busy=busy)
    measured, share = busy_mhz(rig, seconds, base)
    assert measured == pytest.approx(mhz, rel=1e-4)
    assert share == pytest.approx(busy, rel=1e-4)


def test_counters_count_on_from_what_is_written_and_the_read_only_ones_do_not():
    rig = Rig("aperf-mperf", PAIR, base_mhz=1000, mhz=2000)
    rig.seconds(1)
    assert rig.write(0xE8, 5) is None
    assert (rig.read(0xE8), rig.read(0xC00000E8)) == (5, 2_000_000_000)
    rig.seconds(1)
    assert (rig.read(0xE8), rig.read(0xE7)) == (2_000_000_005, 2_000_000_000)
    assert rig.write(0xC00000E7, 0) == FAULT


def frequency(**parameters):
    return Rig("frequency", ALL, base=20, minimum=8, turbo=[40, 38], **parameters)


def test_what_the_platform_says():
    rig = frequency()
    assert rig.read(0xCE) == 20 << 8 | 1 << 28 | 8 << 40
    assert rig.read(0x1AD) == 0x2626_2626_2626_2628
    assert rig.read(0x1B0) == 6
    assert rig.write(0x1B0, 16) == FAULT
    assert rig.write(0x1B0, 15) is None
    assert rig.read(0x1B0) == 15
    assert rig.write(0xCE, 0) == FAULT


@pytest.mark.parametrize(
    ("control", "mhz"),
    [(0, 4000), (30 << 8, 3000), (2 << 8, 800), (99 << 8, 4000), (35 << 8 | 1 << 32, 2000)],
)
def test_the_thread_runs_as_fast_as_perf_ctl_says(control, mhz):
    rig = frequency()
    rig.write(0x199, control)
    assert rig.read(0x198) == mhz // 100 << 8
    assert busy_mhz(rig, 3, 2000)[0] == pytest.approx(mhz)


@pytest.mark.parametrize("khz", [1_000_000, 2_095_078, 4_200_000])
def test_without_a_base_the_tscs_frequency_is_the_base(khz):
    """So MPERF counts as far as the TSC while the thread is busy, and ratios fit around it."""
    msrs = [0xE7, 0xE8, 0xCE, 0x1AD, 0x1AE, 0x198, 0x648]
    rig = Rig("frequency", msrs, guest_cpu=Cpu(tsc_khz=khz), minimum=30, turbo=[36])
    base = round(khz / 100_000)
    assert rig.read(0xCE) == base << 8 | 1 << 28 | min(base, 30) << 40
    assert rig.read(0x648) == base
    assert rig.read(0x1AE) == 0x0807_0605_0403_0201
    assert busy_mhz(rig, 7, khz / 1000) == pytest.approx((max(3600, 100 * base), 1), rel=1e-3)
    pair = Rig("aperf-mperf", [0xE7, 0xE8], guest_cpu=Cpu(tsc_khz=khz), mhz=3000)
    assert busy_mhz(pair, 7, khz / 1000) == pytest.approx((3000, 1), rel=1e-3)


def test_where_the_tsc_is_not_known_the_base_is_2_ghz():
    assert Rig("frequency", [0xCE]).read(0xCE) == 20 << 8 | 1 << 28 | 8 << 40


def test_a_change_counts_from_then_on():
    rig = frequency()
    rig.write(0x199, 10 << 8)
    rig.seconds(1)
    rig.write(0x199, 30 << 8)
    rig.seconds(1)
    assert rig.read(0xE8) == 4_000_000_000


def test_hwp_is_enabled_once_and_rules_from_then_on():
    rig = frequency()
    assert [rig.read(index) for index in (0x771, 0x774, 0x777)] == [FAULT] * 3
    assert rig.write(0x774, 0) == FAULT
    assert rig.read(0x773) == 0
    assert rig.write(0x770, 2) == FAULT
    assert rig.write(0x770, 1) is None
    assert rig.write(0x770, 0) is None
    assert rig.read(0x770) == 1  # only a reset disables it
    assert rig.read(0x771) == 40 | 20 << 8 | 8 << 16 | 8 << 24
    assert rig.read(0x774) == 8 | 40 << 8 | 0x80 << 24
    rig.write(0x774, 10 | 25 << 8 | 0x80 << 24)
    assert rig.read(0x198) == 25 << 8
    rig.write(0x774, 10 | 25 << 8 | 15 << 16)
    assert rig.read(0x198) == 15 << 8
    rig.write(0x774, 20 | 25 << 8 | 15 << 16)
    assert rig.read(0x198) == 20 << 8


def test_the_state_survives():
    rig = frequency()
    rig.write(0x199, 10 << 8)
    rig.seconds(2)
    other = rig.reborn(frequency())
    other.seconds(1)
    assert other.read(0xE8) == 3_000_000_000
    assert other.read(0x198) == 10 << 8


def test_ratios_must_make_sense():
    with pytest.raises(PolicyError, match="minimum <= base"):
        Rig("frequency", ALL, base=50, turbo=[40])
