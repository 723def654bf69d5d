# SPDX-License-Identifier: Apache-2.0
"""The 8259 pair: which interrupt comes, when, and what a guest reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.abi.vm import PicState
from kvmsr.backend.soft.irqchip.pic import Pic

EOI, READ_IRR, READ_ISR, POLL = 0x20, 0x0A, 0x0B, 0x0C
BASES = (0x30, 0x38)


def started(icw4=0x01):
    """A pair as Linux sets it up, all unmasked."""
    pic = Pic()
    for command, base, cascade in ((0x20, BASES[0], 4), (0xA0, BASES[1], 2)):
        pic.port_write(command, 1, 0x11)
        for value in (base, cascade, icw4):
            pic.port_write(command + 1, 1, value)
    return pic


def pulse(pic, irq):
    pic.set_line(irq, True)
    pic.set_line(irq, False)


def end(pic, irq):
    if irq >= 8:
        pic.port_write(0xA0, 1, EOI)
    pic.port_write(0x20, 1, EOI)


def isr(pic, port=0x20):
    pic.port_write(port, 1, READ_ISR)
    return pic.port_read(port, 1)


def irr(pic, port=0x20):
    pic.port_write(port, 1, READ_IRR)
    return pic.port_read(port, 1)


@pytest.mark.parametrize("irq", [irq for irq in range(16) if irq != 2])
def test_an_edge_becomes_a_vector_and_the_eoi_ends_it(irq):
    pic = started()
    pulse(pic, irq)
    assert pic.output
    assert pic.acknowledge() == BASES[irq >> 3] + (irq & 7)
    assert not pic.output
    assert isr(pic) == (1 << irq if irq < 8 else 1 << 2)
    assert isr(pic, 0xA0) == (1 << irq - 8 if irq >= 8 else 0)
    end(pic, irq)
    assert not isr(pic) and not isr(pic, 0xA0) and not pic.output


def test_an_edge_stays_and_a_level_goes():
    pic = started()
    pic.port_write(0x4D0, 1, 1 << 5)
    pulse(pic, 5)
    assert not pic.output
    pulse(pic, 4)
    assert pic.output and irr(pic) == 1 << 4


def test_a_level_comes_again_after_its_eoi():
    pic = started()
    pic.port_write(0x4D1, 1, 1 << 3)
    pic.set_line(11, True)
    assert pic.acknowledge() == BASES[1] + 3
    assert not pic.output
    end(pic, 11)
    assert pic.output
    pic.set_line(11, False)
    assert pic.acknowledge() == BASES[1] + 7  # the slave had nothing left
    assert isr(pic, 0xA0) == 0


def test_elcr_keeps_the_timer_and_the_cascade_edge_triggered():
    pic = Pic()
    for port, mask in ((0x4D0, 0xF8), (0x4D1, 0xDE)):
        pic.port_write(port, 1, 0xFF)
        assert pic.port_read(port, 1) == mask


def test_line_status_tells_coalesced_and_masked():
    pic = started()
    assert pic.set_line(4, True) == 1
    assert pic.set_line(4, True) == 1  # no edge: nothing is lost
    pic.set_line(4, False)
    assert pic.set_line(4, True) == 0
    pic.port_write(0x21, 1, 1 << 6)
    assert pic.set_line(6, True) == -1
    assert irr(pic) == 1 << 4 | 1 << 6


def test_a_masked_edge_comes_when_it_is_unmasked():
    pic = started()
    pic.port_write(0x21, 1, 0xFF)
    pulse(pic, 1)
    assert not pic.output
    pic.port_write(0x21, 1, 0xFD)
    assert pic.acknowledge() == BASES[0] + 1


def test_spurious():
    pic = started()
    pulse(pic, 3)
    pic.port_write(0x21, 1, 0xFF)
    assert pic.acknowledge() == BASES[0] + 7
    assert isr(pic) == 0 and irr(pic) == 1 << 3


def test_lower_priorities_wait():
    pic = started()
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 4)
    assert not pic.output
    pulse(pic, 1)
    assert pic.acknowledge() == BASES[0] + 1
    end(pic, 1)
    assert not pic.output
    end(pic, 3)
    assert pic.acknowledge() == BASES[0] + 4


@given(st.sets(st.sampled_from([0, 1, 3, 4, 5, 6, 7])), st.integers(0, 7))
def test_priorities_follow_the_lowest(irqs, lowest):
    pic = started()
    pic.port_write(0x20, 1, 0xC0 | lowest)
    for irq in irqs:
        pulse(pic, irq)
    found = []
    while pic.output:
        found.append(pic.acknowledge() - BASES[0])
        end(pic, found[-1])
    assert found == sorted(irqs, key=lambda irq: (irq - lowest - 1) % 8)


@pytest.mark.parametrize("command", [0xA0, 0xE0 | 3])
def test_rotating_eoi(command):
    pic = started()
    pulse(pic, 3)
    pic.acknowledge()
    pic.port_write(0x20, 1, command)
    pulse(pic, 3)
    pulse(pic, 4)
    assert pic.acknowledge() == BASES[0] + 4


def test_specific_eoi_leaves_the_rest():
    pic = started()
    for irq in (5, 1):
        pulse(pic, irq)
        pic.acknowledge()
    pic.port_write(0x20, 1, 0x60 | 5)
    assert isr(pic) == 1 << 1


def test_auto_eoi_with_rotation():
    pic = started(icw4=0x03)
    pulse(pic, 3)
    assert pic.acknowledge() == BASES[0] + 3
    assert isr(pic) == 0
    pic.port_write(0x20, 1, 0x80)
    found = []
    pulse(pic, 3)
    pic.port_write(0x20, 1, 0xC0 | 3)
    for _ in range(4):
        pulse(pic, 3)
        pulse(pic, 4)
        found.append(pic.acknowledge() - BASES[0])
        assert pic.output  # the other one
    assert found == [4, 3, 4, 3]
    assert isr(pic) == 0


def test_special_fully_nested_mode_lets_the_slave_nest():
    for icw4, nested in ((0x01, False), (0x11, True)):
        pic = started(icw4)
        pulse(pic, 12)
        pic.acknowledge()
        pulse(pic, 9)
        assert pic.output is nested


def test_poll():
    pic = started()
    pulse(pic, 6)
    pic.port_write(0x20, 1, POLL)
    assert pic.port_read(0x20, 1) == 6
    assert not pic.output and irr(pic) == 0 and isr(pic) == 0
    pic.port_write(0x20, 1, POLL)
    assert pic.port_read(0x20, 1) == 7
    pulse(pic, 10)
    pic.port_write(0x20, 1, POLL)
    assert pic.port_read(0x20, 1) == 2
    assert irr(pic) == 0 and irr(pic, 0xA0) == 1 << 2
    pic.port_write(0xA0, 1, POLL)
    assert pic.port_read(0xA0, 1) == 2
    assert not pic.output


def test_a_poll_of_the_slave_takes_back_the_cascade():
    pic = started()
    pulse(pic, 10)
    assert irr(pic) == 1 << 2
    pic.port_write(0xA0, 1, POLL)
    assert pic.port_read(0xA0, 1) == 2
    assert irr(pic) == 0 and not pic.output


def test_icw1_drops_edges_keeps_levels_and_unmasks():
    pic = started()
    acked = []
    pic.on_ack = acked.append
    pic.port_write(0x4D0, 1, 1 << 5)
    pic.set_line(5, True)
    pic.set_line(4, True)
    pic.port_write(0x21, 1, 0xFF)
    pic.port_write(0x20, 1, 0x11)
    assert irr(pic) == 1 << 5 and acked == [4]
    for value in (BASES[0], 4, 1):
        pic.port_write(0x21, 1, value)
    assert pic.port_read(0x21, 1) == 0
    pic.set_line(4, True)  # an edge, for the chip forgot that the line is up
    assert irr(pic) == 1 << 5 | 1 << 4


def test_without_icw4_there_are_three_bytes():
    pic = started(icw4=0x03)
    for port, value in ((0x20, 0x10), (0x21, 0x47), (0x21, 4), (0x21, 0xA5)):
        pic.port_write(port, 1, value)
    assert pic.port_read(0x21, 1) == 0xA5
    state = pic.get_state(0)
    assert state.irq_base == 0x40 and not state.auto_eoi


def test_listeners():
    pic = started()
    seen = []
    pic.on_change = lambda: seen.append("INTR")
    pic.on_ack = lambda irq: seen.append(("ack", irq))
    pic.on_mask = lambda irq, masked: seen.append(("mask", irq, masked))
    pulse(pic, 9)
    pulse(pic, 10)
    pic.acknowledge()
    end(pic, 9)
    assert seen == ["INTR", ("ack", 9), ("ack", 2), "INTR"]
    seen.clear()
    pic.port_write(0xA1, 1, 0x04)
    pic.port_write(0x21, 1, 0x01)
    pic.port_write(0x21, 1, 0x00)
    assert ("mask", 10, True) in seen
    assert seen[-2:] == [("mask", 0, True), ("mask", 0, False)]


def test_an_ack_may_raise_the_next():
    pic = started()
    pic.on_ack = lambda irq: pulse(pic, irq)
    pulse(pic, 0)
    for _ in range(3):
        assert pic.acknowledge() == BASES[0]
        assert not pic.output
        end(pic, 0)
        assert pic.output


def test_only_bytes():
    pic = started()
    pic.port_write(0x21, 2, 0xFFFF)
    assert pic.port_read(0x21, 1) == 0
    pic.port_write(0x21, 1, 0xFF)
    assert pic.port_read(0x21, 2) == 0


def test_state_moves_to_another():
    pic, other = started(), Pic()
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 1)
    called = []
    other.on_change = lambda: called.append(True)
    for chip in (1, 0):
        other.set_state(chip, pic.get_state(chip))
    assert called and other.acknowledge() == BASES[0] + 1
    assert pic.output  # the copies are not shared


def test_reset():
    pic = started()
    pulse(pic, 3)
    pic.reset()
    assert not pic.output
    assert pic.get_state(0) == PicState(elcr_mask=0xF8)
    assert pic.get_state(1) == PicState(elcr_mask=0xDE)


PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)


@given(
    st.lists(
        st.tuples(st.sampled_from(PORTS), st.integers(0, 255))
        | st.tuples(st.integers(0, 15), st.booleans())
        | st.none()
    )
)
def test_nothing_a_guest_does_raises(steps):
    pic = Pic()
    for step in steps:
        if step is None:
            assert 0 <= pic.acknowledge() <= 0xFF
        elif isinstance(step[1], bool):
            assert pic.set_line(*step) in (-1, 0, 1)
        else:
            pic.port_write(step[0], 1, step[1])
        assert all(0 <= pic.port_read(port, 1) <= 0xFF for port in PORTS)
