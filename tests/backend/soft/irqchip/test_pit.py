# SPDX-License-Identifier: Apache-2.0
"""The 8254: when IRQ 0 comes, and what a guest reads as time goes by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.backend.soft.irqchip.pit import Pit

HZ, SECOND = 1_193_182, 1_000_000_000
GATE, SPEAKER, OUT = 1 << 0, 1 << 1, 1 << 5


class Clock:
    """Time that stands still."""

    def __init__(self):
        self.time, self.polls = 12_345, 0

    def now(self):
        return self.time

    def polled(self):
        self.polls += 1


class Board:
    """A PIT, its clock, and a guest that counts the edges of IRQ 0."""

    def __init__(self, flags=1):
        self.clock, self.edges, self.level = Clock(), 0, False
        self.pit = Pit(self.clock, self.set_irq0, flags)

    def set_irq0(self, level):
        self.edges += level and not self.level
        self.level = level

    def load(self, channel, mode, count):
        self.pit.port_write(0x43, 1, channel << 6 | 0x30 | mode << 1)
        self.pit.port_write(0x40 + channel, 1, count & 0xFF)
        self.pit.port_write(0x40 + channel, 1, count >> 8)

    def counter(self, channel):
        return self.pit.port_read(0x40 + channel, 1) | self.pit.port_read(0x40 + channel, 1) << 8

    def out(self):
        return bool(self.pit.port_read(0x61, 1) & OUT)

    def at(self, begin, ticks):
        """Go to the first ns at which *ticks* are over."""
        self.clock.time = begin + -(-ticks * SECOND // HZ)

    def expire(self):
        self.clock.time = self.pit.deadline
        self.pit.expire(self.clock.time)


@pytest.fixture
def board():
    return Board()


def test_nothing_is_due_at_first(board):
    assert board.pit.deadline is None
    board.pit.expire(10 * SECOND)
    assert board.edges == 0
    assert board.pit.get_state().channels[0].mode == 0xFF


@pytest.mark.parametrize("mode", [0, 1, 4])
def test_one_shot(board, mode):
    board.load(0, mode, 11932)
    due = board.pit.deadline
    assert due == board.clock.time + 10_000_151  # 11932 / 1193182 s
    board.pit.expire(due - 1)
    assert board.edges == 0
    board.pit.expire(due)
    assert board.edges == 1 and not board.level
    assert board.pit.deadline is None


@pytest.mark.parametrize("mode", [2, 3, 6, 7])
def test_periods_do_not_drift(board, mode):
    board.load(0, mode, 1193)
    begin = board.clock.time
    for _ in range(1000):
        board.expire()
        board.pit.acked()
    assert board.edges == 1000
    assert board.pit.deadline == begin + -(-1001 * 1193 * SECOND // HZ)


def test_the_greatest_count_is_zero(board):
    board.load(0, 2, 0)
    assert board.pit.deadline - board.clock.time == -(-65536 * SECOND // HZ)


def test_5000_ticks_a_second_are_the_most(board):
    board.load(0, 2, 2)
    assert 199_000 < board.pit.deadline - board.clock.time <= 200_000
    board.load(0, 0, 2)
    assert board.pit.deadline - board.clock.time < 2_000


def test_mode_5_stops_the_interrupt(board):
    board.load(0, 2, 1193)
    board.load(0, 5, 1193)
    assert board.pit.deadline is None


def test_a_period_lasts_until_the_next_count(board):
    board.load(0, 2, 1193)
    board.pit.port_write(0x43, 1, 0x30)
    board.expire()
    assert board.edges == 1 and board.pit.deadline is not None


@given(st.lists(st.integers(1, 20_000_000), min_size=1, max_size=20), st.integers(300, 0x10000))
def test_no_tick_is_lost(steps, count):
    board = Board()
    board.load(0, 2, count & 0xFFFF)
    begin = board.clock.time
    for step in steps:
        board.clock.time += step
        board.pit.expire(board.clock.time)
    due = (board.clock.time - begin) * HZ // SECOND // count
    assert board.edges == min(due, 1)
    for _ in range(due + 3):
        board.pit.acked()
    assert board.edges == due


def test_without_reinjection_late_ticks_are_one(board):
    board.pit.reinject = False
    board.load(0, 2, 1193)
    for _ in range(3):
        board.clock.time += 50_000_000
        board.pit.expire(board.clock.time)
    board.pit.acked()
    assert board.edges == 3
    board.pit.reinject = True
    board.expire()
    board.pit.acked()
    assert board.edges == 4


def test_unmasking_forgets_what_the_mask_swallowed(board):
    board.load(0, 2, 1193)
    for _ in range(5):
        board.expire()
    assert board.edges == 1
    board.pit.unmasked()
    board.expire()
    assert board.edges == 2
    board.pit.acked()
    assert board.edges == 2


def test_a_new_count_forgets_the_ticks(board):
    board.load(0, 2, 1193)
    for _ in range(5):
        board.expire()
    board.load(0, 2, 1193)
    board.expire()
    assert board.edges == 2
    board.pit.acked()
    assert board.edges == 2


@pytest.mark.parametrize(
    ("mode", "ticks", "count", "out"),
    [
        (0, 99, 1, False),
        (0, 100, 0, True),
        (0, 101, 0xFFFF, True),
        (1, 99, 1, True),
        (1, 100, 0, False),
        (2, 0, 100, False),
        (2, 99, 1, False),
        (2, 100, 100, True),
        (2, 130, 70, False),
        (3, 0, 100, True),
        (3, 49, 2, True),
        (3, 50, 100, False),
        (3, 99, 2, False),
        (3, 100, 100, True),
        (4, 99, 1, False),
        (4, 100, 0, True),
        (4, 101, 0xFFFF, False),
    ],
)
def test_counters_and_outputs(board, mode, ticks, count, out):
    board.load(2, mode, 100)
    board.at(board.clock.time, ticks)
    assert board.counter(2) == count
    assert board.out() is out


def test_an_odd_square_wave_is_longer_high(board):
    board.load(2, 3, 7)
    begin = board.clock.time
    levels = []
    for ticks in range(14):
        board.at(begin, ticks)
        levels.append(board.out())
    assert levels == 2 * (4 * [True] + 3 * [False])


def test_a_latched_count_stays(board):
    board.load(0, 2, 0x4321)
    board.pit.port_write(0x43, 1, 0x00)
    board.at(board.clock.time, 0x1111)
    board.pit.port_write(0x43, 1, 0x00)  # the second latch is ignored
    assert board.counter(0) == 0x4321
    assert board.counter(0) == 0x3210


@pytest.mark.parametrize(("access", "byte"), [(1, 0x21), (2, 0x43)])
def test_single_bytes(board, access, byte):
    board.load(2, 2, 0x4321)
    board.pit.port_write(0x43, 1, 0x80 | access << 4 | 2 << 1)
    assert [board.pit.port_read(0x42, 1) for _ in range(2)] == [byte, byte]
    board.pit.port_write(0x42, 1, 0x12)
    assert board.pit.get_state().channels[2].count == (0x12 if access == 1 else 0x1200)


def test_read_back(board):
    board.load(0, 2, 0x1234)
    board.load(2, 3, 0x5678)
    board.pit.port_write(0x43, 1, 0xC0 | 1 << 3 | 1 << 1)
    assert board.pit.port_read(0x40, 1) == 0x30 | 2 << 1
    assert board.counter(0) == 0x1234
    assert board.pit.port_read(0x42, 1) == 0x80 | 0x30 | 3 << 1
    assert board.counter(2) == 0x5678
    board.pit.port_write(0x43, 1, 0xE0 | 1 << 3)  # the status alone
    board.at(board.clock.time, 0x5678 // 2)
    board.pit.port_write(0x43, 1, 0xE0 | 1 << 3)
    assert board.pit.port_read(0x42, 1) & 0x80
    assert not board.out()


def test_port_61(board):
    read = board.pit.port_read
    assert read(0x61, 1) & (GATE | SPEAKER) == 0
    board.pit.port_write(0x61, 1, 0xFF)
    assert read(0x61, 1) & 0xCF == GATE | SPEAKER | (OUT if board.out() else 0)
    refresh = set()
    for _ in range(4):
        refresh.add(read(0x61, 1) & 1 << 4)
        board.clock.time += 1 << 14
    assert refresh == {0, 1 << 4}


@pytest.mark.parametrize(("mode", "restarts"), [(0, False), (1, True), (2, True), (3, True)])
def test_the_gate(board, mode, restarts):
    board.pit.port_write(0x61, 1, 0)
    board.load(2, mode, 1000)
    board.at(board.clock.time, 100)
    board.pit.port_write(0x61, 1, GATE)
    assert (board.counter(2) == 1000) is restarts
    count = board.counter(2)
    board.at(board.clock.time, 10)
    board.pit.port_write(0x61, 1, GATE)  # no edge
    assert board.counter(2) < count


def test_reads_are_polls(board):
    for number, port in enumerate((0x40, 0x41, 0x42, 0x61)):
        board.pit.port_read(port, 1)
        assert board.clock.polls == number + 1
    board.load(0, 2, 100)
    assert board.pit.port_read(0x43, 1) == 0
    assert board.clock.polls == 4


def test_ports():
    assert Board(flags=0).pit.ports == {0x40, 0x41, 0x42, 0x43}
    assert Board(flags=1).pit.ports == {0x40, 0x41, 0x42, 0x43, 0x61}


def test_state_moves_to_another(board):
    board.load(0, 2, 1193)
    board.load(2, 3, 500)
    board.pit.port_write(0x61, 1, GATE | SPEAKER)
    other = Board()
    other.clock.time = 7 * SECOND
    other.pit.set_state(board.pit.get_state())
    assert other.pit.deadline == 7 * SECOND + -(-1193 * SECOND // HZ)
    assert other.counter(2) == 500
    assert other.pit.port_read(0x61, 1) & 3 == GATE | SPEAKER
    assert other.pit.get_state().flags == SPEAKER


def test_an_hpet_takes_irq_0(board):
    board.load(0, 2, 1193)
    state = board.pit.get_state()
    state.flags |= 1
    board.pit.set_state(state)
    assert board.pit.deadline is None
    state.flags = 0
    board.pit.set_state(state)
    assert board.pit.deadline is not None


@given(
    st.lists(
        st.tuples(st.sampled_from((0x40, 0x41, 0x42, 0x43, 0x61)), st.integers(0, 255)),
        max_size=40,
    )
)
def test_nothing_a_guest_does_raises(writes):
    board = Board()
    for port, value in writes:
        board.pit.port_write(port, 1, value)
        board.clock.time += 100_000
        board.pit.expire(board.clock.time)
        assert board.pit.deadline is None or board.pit.deadline > board.clock.time
        assert all(0 <= board.pit.port_read(each, 1) <= 0xFF for each in (0x40, 0x41, 0x42, 0x61))
