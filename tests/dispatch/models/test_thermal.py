"""Temperatures: constants, curves, thresholds, and logs that stay until they are cleared."""

import pytest

from kvmsr.errors import PolicyError
from tests.dispatch.models.rig import FAULT, Rig

CORE, PACKAGE = 0x19C, 0x1B1
ALL = [0x1A2, CORE, PACKAGE, 0x19B, 0x1B2]
LOGS = 0xAAA


def thermal(celsius, **parameters):
    return Rig("thermal", ALL, celsius=celsius, **parameters)


def degrees(rig, index=CORE):
    return 100 - (rig.read(index) >> 16 & 0x7F)


def test_a_constant():
    rig = thermal(45)
    assert rig.read(0x1A2) == 100 << 16
    assert degrees(rig) == degrees(rig, PACKAGE) == 45
    assert rig.read(CORE) >> 31 == 1
    assert rig.read(PACKAGE) >> 31 == 0
    assert rig.read(CORE) & 0x3 == 0


def test_a_curve_is_followed_and_its_end_holds():
    rig = thermal([(0, 40), (10, 60), (20, 50)])
    seen = []
    for _ in range(6):
        seen.append(degrees(rig))
        rig.seconds(5)
    assert seen == [40, 50, 60, 55, 50, 50]


def test_what_was_crossed_between_two_looks_is_logged_until_it_is_cleared():
    rig = thermal([(0, 50), (10, 103), (20, 50)])
    assert rig.read(CORE) & 0xFFF == 0x140 | 0x280 or rig.read(CORE) & 0x3 == 0
    rig.seconds(30)
    status = rig.read(CORE)
    assert status & 0x5 == 0  # neither hot nor PROCHOT now
    assert status & 0xA == 0xA  # but both were
    assert status & 0x20 == 0  # never critical
    assert rig.write(CORE, ~0x2 & 0xFFFF_FFFF) is None
    assert rig.read(CORE) & 0xA == 0x8
    assert rig.write(CORE, 0xFFFF_FFFF) is None  # ones clear nothing
    assert rig.read(CORE) & 0xA == 0x8
    assert rig.read(PACKAGE) & 0xA == 0xA  # a sensor of its own


def test_hot_stays_hot():
    rig = thermal(106)
    assert rig.read(CORE) & 0x3F == 0x3F
    rig.write(CORE, 0)
    assert rig.read(CORE) & 0x3F == 0x15  # the state is, the log is cleared
    assert degrees(rig) == 100


def test_thresholds_are_crossed_both_ways():
    rig = thermal([(0, 50), (10, 80), (20, 50)])
    assert rig.write(0x19B, 30 << 8 | 1 << 15 | 10 << 16) is None  # 70 and 90 degrees
    rig.write(CORE, 0)
    assert rig.read(CORE) & 0x3C0 == 0
    rig.seconds(8)
    assert rig.read(CORE) & 0x3C0 == 0xC0
    rig.write(CORE, 0)
    assert rig.read(CORE) & 0x3C0 == 0x40
    rig.seconds(8)
    assert rig.read(CORE) & 0x3C0 == 0x80
    assert rig.write(0x19B, 1 << 40) == FAULT
    assert rig.read(0x1B2) == 0


def test_an_offset_lowers_where_it_is_hot():
    rig = thermal(93)
    assert rig.read(CORE) & 1 == 0
    assert rig.write(0x1A2, 10 << 24) is None
    assert rig.read(0x1A2) == 100 << 16 | 10 << 24
    assert rig.read(CORE) & 1 == 1


def test_the_state_survives():
    curve = [(0, 50), (10, 103), (20, 50)]
    rig = thermal(curve)
    rig.seconds(15)
    assert rig.read(CORE) & 0xA == 0xA
    other = rig.reborn(thermal(curve))
    assert degrees(other) == degrees(rig)
    assert other.read(CORE) & 0xA == 0xA


def test_a_curve_goes_forward():
    with pytest.raises(PolicyError, match="must rise"):
        thermal([(5, 40), (5, 50)])
