# SPDX-License-Identifier: Apache-2.0
"""The I/O APIC: what a pin sends, when, and what a guest reads."""

import pytest

from kvmsr.abi.vm import IoapicState
from kvmsr.backend.soft.irqchip.ioapic import PINS, Ioapic
from kvmsr.backend.soft.irqchip.message import LOWEST, Message

SELECT, WINDOW = 0x00, 0x10
MASKED, LEVEL, REMOTE_IRR, STATUS = 1 << 16, 1 << 15, 1 << 14, 1 << 12
PIN, VECTOR = 5, 0x41


class Board:
    """An I/O APIC and those that it tells."""

    def __init__(self):
        self.sent, self.acked, self.unmasked, self.takers = [], [], [], 1
        self.ioapic = Ioapic(self.deliver, self.acked.append, self.unmasked.append)

    def deliver(self, message):
        self.sent.append(message)
        return self.takers

    def read(self, register, size=4):
        self.ioapic.mmio_write(SELECT, 4, register)
        return self.ioapic.mmio_read(WINDOW, size)

    def write(self, register, value):
        self.ioapic.mmio_write(SELECT, 4, register)
        self.ioapic.mmio_write(WINDOW, 4, value)

    def program(self, entry, pin=PIN):
        self.write(0x11 + 2 * pin, entry >> 32)
        self.write(0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def line(self, level, pin=PIN):
        return self.ioapic.set_line(pin, level)

    def end(self, level_triggered=True, vector=VECTOR):
        self.ioapic.end_of_interrupt(vector, level_triggered=level_triggered)

    def state(self):
        state = IoapicState()
        self.ioapic.get_state(state)
        return state


@pytest.fixture
def board():
    return Board()


def test_reset(board):
    assert board.read(0x01) == 0x17_0011
    assert board.read(0x00) == board.read(0x02) == 0
    assert [board.read(0x10 + 2 * pin) for pin in range(PINS)] == [MASKED] * PINS


def test_registers_that_are_none(board):
    assert board.read(0x10 + 2 * PINS) == board.read(0x03) == 0xFFFF_FFFF
    board.write(0x10 + 2 * PINS, 0)
    board.write(0x01, 0)
    assert board.read(0x01) == 0x17_0011
    assert board.ioapic.mmio_read(0x20, 4) == board.ioapic.mmio_read(0x100, 4) == 0


def test_id_and_selector(board):
    board.write(0x00, 0xFF00_0000)
    assert board.read(0x00) == board.read(0x02) == 0x0F00_0000
    board.ioapic.mmio_write(SELECT, 4, 0x1_23)
    assert board.ioapic.mmio_read(SELECT, 4) == 0x23


def test_reads_of_parts(board):
    board.program(0x1234)
    assert board.read(0x10 + 2 * PIN, 1) == 0x34


def test_the_message_of_an_entry(board):
    board.program(0x0300_0000_0000_8941)
    board.line(True)
    assert board.sent == [Message(VECTOR, LOWEST, 3, True, True, True)]


def test_an_edge(board):
    board.program(VECTOR)
    assert board.line(True) == 1 and board.line(True) == 0
    assert board.line(False) == 1 and board.line(True) == 1
    assert len(board.sent) == 2


def test_an_edge_on_a_masked_pin_is_lost(board):
    board.program(MASKED | VECTOR)
    assert board.line(True) == -1
    board.program(VECTOR)
    assert not board.sent and board.unmasked == [PIN]


def test_a_level_waits_for_its_eoi(board):
    board.program(LEVEL | VECTOR)
    assert board.line(True) == 1 and board.line(True) == -1
    assert board.read(0x10 + 2 * PIN) == LEVEL | REMOTE_IRR | VECTOR
    board.end()
    assert len(board.sent) == 2 and board.acked == [PIN], "the line is still up"
    board.line(False)
    board.end()
    assert len(board.sent) == 2 and board.read(0x10 + 2 * PIN) == LEVEL | VECTOR


def test_a_level_on_a_masked_pin_waits(board):
    board.program(MASKED | LEVEL | VECTOR)
    assert board.line(True) == -1
    board.program(LEVEL | VECTOR)
    assert len(board.sent) == 1


def test_a_level_that_nobody_takes_needs_no_eoi(board):
    board.program(LEVEL | VECTOR)
    board.takers = 0
    assert board.line(True) == 0
    assert board.read(0x10 + 2 * PIN) == LEVEL | VECTOR


def test_the_eoi_of_another_interrupt_is_not_a_levels(board):
    board.program(LEVEL | VECTOR)
    board.line(True)
    board.end(vector=VECTOR + 1)
    assert not board.acked
    board.end(level_triggered=False)  # an IPI of the same vector
    assert len(board.sent) == 1 and board.read(0x10 + 2 * PIN) & REMOTE_IRR


def test_the_eoi_of_an_edge_is_told(board):
    board.program(VECTOR)
    board.program(VECTOR, pin=7)
    board.line(True)
    board.end(level_triggered=False)
    assert board.acked == [PIN, 7] and len(board.sent) == 1


def test_guests_cannot_write_status_bits(board):
    board.program(LEVEL | REMOTE_IRR | STATUS | VECTOR)
    assert board.read(0x10 + 2 * PIN) == LEVEL | VECTOR
    board.line(True)
    board.program(MASKED | LEVEL | VECTOR)
    assert board.read(0x10 + 2 * PIN) == MASKED | LEVEL | REMOTE_IRR | VECTOR


def test_to_edge_and_back_is_an_eoi(board):
    board.program(LEVEL | VECTOR)
    board.line(True)
    board.line(False)
    board.program(MASKED | VECTOR)
    board.program(LEVEL | VECTOR)
    assert board.line(True) == 1


def test_state_has_what_was_not_delivered(board):
    board.program(VECTOR)
    board.program(MASKED | LEVEL | 0x51, pin=9)
    board.line(True)
    board.line(True, pin=9)
    assert board.state().irr == 1 << 9, "the edge went out"


def test_a_coalesced_edge_is_still_to_be_delivered(board):
    board.program(VECTOR)
    board.line(True)
    board.line(True)
    assert board.state().irr == 1 << PIN


def test_state_goes_to_another(board):
    board.write(0x00, 3 << 24)
    board.program(0x0200_0000_0000_8041)
    board.takers = 0
    board.line(True)
    state = board.state()
    assert state.base_address == 0xFEC0_0000 and state.id == 3
    other = Board()
    other.ioapic.set_state(state)
    assert other.sent == [Message(VECTOR, 0, 2, False, True, True)]
    other.end()
    assert len(other.sent) == 2, "it knows the vector"
