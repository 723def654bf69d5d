# SPDX-License-Identifier: Apache-2.0
"""The local APIC: which vector is due, its modes, its timer, and its state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.backend.soft.irqchip.lapic import Lapic
from kvmsr.backend.soft.irqchip.message import (
    EXTINT,
    FIXED,
    INIT,
    LOWEST,
    NMI,
    REMOTE_READ,
    SMI,
    STARTUP,
    Message,
)

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SPIV = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVTT, LVT0, LVT1, LVTERR, TMICT, TMCCT, TDCR = 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0
XAPIC, X2APIC, DISABLED = 0xFEE0_0800, 0xFEE0_0C00, 0xFEE0_0000
MASKED, PERIODIC, DEADLINE = 1 << 16, 1 << 17, 2 << 17
DIVIDE_BY_1 = 0xB


class Clock:
    """Time that stands still; the TSC has 2 GHz."""

    def __init__(self):
        self.time = 1_000

    def now(self):
        return self.time

    def tsc_to_ns(self, tsc):
        return -(-tsc // 2)


class Board:
    """A local APIC that is enabled by software, its vCPU, and the rest of the chip."""

    def __init__(self, apic_id=1, is_bsp=False):
        self.told, self.ended = [], []
        self.reenables_lint0 = True
        self.clock = Clock()
        self.lapic = Lapic(apic_id, self.clock, self, self, is_bsp=is_bsp)
        self.write(SPIV, 0x1FF)

    def __getattr__(self, name):
        if name not in ("wake", "nmi", "smi", "unhalt", "init", "sipi"):
            raise AttributeError(name)
        return lambda *arguments: self.told.append((name, *arguments))

    def eoi(self, vector):
        pass

    def end_of_interrupt(self, vector, *, level_triggered):
        self.ended.append((vector, level_triggered))

    def read(self, offset, size=4):
        return self.lapic.mmio_read(offset, size)

    def write(self, offset, value, size=4):
        self.lapic.mmio_write(offset, size, value)

    def request(self, vector, level_triggered=False):
        return self.lapic.accept(Message(vector, FIXED, 0, False, True, level_triggered))

    def advance(self, nanoseconds):
        """Let time go by; return whether the timer's interrupt came."""
        self.clock.time += nanoseconds
        self.lapic.expire(self.clock.time)
        vector = self.lapic.acknowledge()
        self.write(EOI, 0)
        return vector is not None


@pytest.fixture
def board():
    return Board()


# Priorities


def due(irr, isr, tpr):
    """The rule of SDM volume 3, 11.8.3, in words of sets."""
    serving = max((vector >> 4 for vector in isr), default=0)
    vector = max(irr, default=0)
    return vector if vector >> 4 > max(serving, tpr >> 4) else None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.integers(16, 255)),
        st.tuples(st.just("tpr"), st.integers(0, 255)),
        st.tuples(st.sampled_from(("acknowledge", "eoi")), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_the_vector_that_is_due(sequence):
    board, irr, isr, tpr = Board(), set(), set(), 0
    for step, value in sequence:
        expected = due(irr, isr, tpr)
        if step == "request":
            assert board.request(value)
            irr.add(value)
        elif step == "tpr":
            board.write(TPR, value)
            tpr = value
        elif step == "eoi":
            board.write(EOI, 0)
            isr.discard(max(isr, default=None))
        else:
            assert board.lapic.acknowledge() == expected
            if expected is not None:
                irr.remove(expected)
                isr.add(expected)
        assert board.lapic.pending_vector() == due(irr, isr, tpr)
        for first, vectors in ((IRR, irr), (ISR, isr)):
            words = [board.read(first + 0x10 * n) for n in range(8)]
            assert {v for v in range(256) if words[v // 32] >> v % 32 & 1} == vectors


@pytest.mark.parametrize(
    ("tpr", "serving", "ppr"), [(0x35, None, 0x35), (0x35, 0x38, 0x35), (0x35, 0x48, 0x40)]
)
def test_processor_priority(board, tpr, serving, ppr):
    if serving is not None:
        board.request(serving)
        board.lapic.acknowledge()
    board.write(TPR, tpr)
    assert board.read(PPR) == ppr


def test_cr8_is_the_priority_class(board):
    board.lapic.cr8 = 5
    assert board.read(TPR) == 0x50
    board.write(TPR, 0x7F)
    assert board.lapic.cr8 == 7


def test_a_lower_priority_wakes_the_vcpu(board):
    board.write(TPR, 0x50)
    board.request(0x41)
    board.told.clear()
    board.write(TPR, 0x60)
    assert not board.told
    board.lapic.cr8 = 0
    assert ("wake",) in board.told


def test_an_eoi_tells_the_ioapic_how_the_interrupt_came(board):
    for level_triggered in (True, False):
        board.request(0x41, level_triggered)
        assert board.read(TMR + 0x20) == 2 * level_triggered
        board.lapic.acknowledge()
        board.write(EOI, 0)
    assert board.ended == [(0x41, True), (0x41, False)]


def test_an_eoi_without_an_interrupt_is_nothing(board):
    board.write(EOI, 0)
    assert not board.ended


# Messages


@pytest.mark.parametrize(
    ("mode", "event"),
    [
        (SMI, ("smi",)),
        (REMOTE_READ, ("unhalt",)),
        (NMI, ("nmi",)),
        (INIT, ("init",)),
        (STARTUP, ("sipi", 0x9A)),
    ],
)
def test_messages_other_than_interrupts(board, mode, event):
    board.told.clear()
    assert board.lapic.accept(Message(0x9A, mode, 0, False, True, False))
    assert board.told == [event]
    assert board.lapic.pending_vector() is None


@pytest.mark.parametrize("mode", [FIXED, LOWEST, INIT])
def test_a_deasserted_level_is_ignored(board, mode):
    board.told.clear()
    assert not board.lapic.accept(Message(0x41, mode, 0, False, False, True))
    assert not board.told and board.lapic.pending_vector() is None


def test_a_message_that_nobody_takes(board):
    board.told.clear()
    assert not board.lapic.accept(Message(0x41, EXTINT, 0, False, True, False))
    assert not board.told


def test_disabled_by_software_it_takes_no_interrupt_but_an_nmi(board):
    board.write(SPIV, 0xFF)
    assert not board.request(0x41)
    assert board.lapic.accept(Message(0, NMI, 0, False, True, False))


# Registers


def test_reset_values():
    for is_bsp in (False, True):
        lapic = Board(3, is_bsp).lapic
        lapic.reset(init=False)
        expected = {
            ID: 3 << 24, VERSION: 0x5_0014, TPR: 0, LDR: 0, DFR: 0xFFFF_FFFF, SPIV: 0xFF, ICR: 0,
            LVTT: MASKED, LVT0: 0x700 if is_bsp else MASKED, LVTERR: MASKED, TMICT: 0, TDCR: 0,
        }  # fmt: skip
        assert {offset: lapic.mmio_read(offset, 4) for offset in expected} == expected
        assert lapic.apic_base == (0xFEE0_0900 if is_bsp else 0xFEE0_0800)


@pytest.mark.parametrize(
    ("offset", "kept"),
    [(ID, 0xFF00_0000), (VERSION, 0), (TPR, 0xFF), (LDR, 0xFF00_0000), (SPIV, 0x3FF), (ESR, 0),
     (ICR2, 0xFF00_0000), (LVTT, 0x7_10FF), (0x330, 0x1_17FF), (0x340, 0x1_17FF),
     (LVT0, 0x1_F7FF), (LVT1, 0x1_F7FF), (LVTERR, 0x1_10FF), (TMCCT, 0), (TDCR, 0xB),
     (0x3F0, 0)],
)  # fmt: skip
def test_bits_that_can_be_written(board, offset, kept):
    before = board.read(offset)
    board.write(offset, 0xFFFF_FFFF)
    assert board.read(offset) == (kept or before)


def test_dfr_has_ones_below(board):
    board.write(DFR, 0)
    assert board.read(DFR) == 0x0FFF_FFFF


def test_parts_of_registers(board):
    board.write(LDR, 0xAB00_0000)
    assert board.read(LDR + 3, 1) == 0xAB and board.read(LDR + 2, 2) == 0xAB00
    assert board.read(LDR + 3, 2) == board.read(LDR + 4, 4) == 0
    board.write(LDR, 0, 2)
    board.write(LDR + 4, 0)
    assert board.read(LDR) == 0xAB00_0000


def test_software_disable_masks_the_lvts(board):
    for offset in (LVT0, LVTERR):
        board.write(offset, 0x41)
    board.write(SPIV, 0xFF)
    board.write(LVT1, 0x42)
    assert [board.read(offset) for offset in (LVT0, LVTERR, LVT1)] == [
        MASKED | 0x41, MASKED | 0x41, MASKED | 0x42,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("base", "lvt0", "accepts"),
    [(XAPIC, 0x700, True), (XAPIC, 0x700 | MASKED, False), (XAPIC, 0x30, False),
     (X2APIC, 0x700, True), (DISABLED, 0x700 | MASKED, True)],
)  # fmt: skip
def test_when_the_8259s_come_through(board, base, lvt0, accepts):
    board.write(LVT0, lvt0)
    board.lapic.apic_base = base
    assert board.lapic.accepts_pic_interrupt() == accepts


# Modes


def test_without_xapic_mode_the_page_is_a_hole(board):
    for base in (DISABLED, X2APIC):
        board.lapic.apic_base = base
        assert board.read(ID) == 0xFFFF_FFFF and board.read(ID, 1) == 0xFF
        board.write(TPR, 0x50)
        board.lapic.apic_base = XAPIC
        assert board.read(TPR) == 0


def test_disabled_no_interrupt_is_due(board):
    board.request(0x41)
    board.lapic.apic_base = DISABLED
    assert board.lapic.pending_vector() is None and board.lapic.acknowledge() is None
    board.lapic.apic_base = XAPIC
    assert board.lapic.pending_vector() == 0x41


def test_x2apic_has_its_own_id_and_ldr():
    lapic = Board(0x25).lapic
    lapic.mmio_write(ID, 4, 7 << 24)
    lapic.mmio_write(LDR, 4, 0x0100_0000)
    lapic.apic_base = X2APIC
    assert lapic.x2apic_read(0x802) == 0x25
    assert lapic.x2apic_read(0x80D) == 0x0002_0020
    lapic.reset(init=True)
    assert lapic.apic_base == X2APIC and lapic.x2apic_read(0x80D) == 0x0002_0020


def test_the_id_survives_init_but_neither_reset_nor_enabling(board):
    board.write(ID, 7 << 24)
    board.lapic.reset(init=True)
    assert board.read(ID) == 7 << 24
    board.lapic.apic_base = DISABLED
    board.lapic.apic_base = XAPIC
    assert board.read(ID) == 1 << 24
    board.write(ID, 7 << 24)
    board.lapic.reset(init=False)
    assert board.read(ID) == 1 << 24


READABLE = {2, 3, 8, 0xA, 0xD, 0xF, *range(0x10, 0x29), 0x30, *range(0x32, 0x3A), 0x3E}
WRITABLE = {8, 0xB, 0xF, 0x28, 0x30, *range(0x32, 0x39), 0x3E, 0x3F}


@pytest.mark.parametrize("base", [X2APIC, XAPIC, DISABLED])
def test_which_msrs_exist(board, base):
    board.send = lambda *_arguments, **_named: 0
    board.lapic.apic_base = base
    numbers = range(0x100)
    exist = base == X2APIC
    readable = {n for n in numbers if board.lapic.x2apic_read(0x800 + n) is not None}
    assert readable == (READABLE if exist else set())
    writable = {n for n in numbers if board.lapic.x2apic_write(0x800 + n, 0)}
    assert writable == (WRITABLE if exist else set())


@pytest.mark.parametrize(
    ("number", "value"),
    [(8, 1 << 32), (0x28, 1), (0x3F, 0x100), (0x30, 1 << 13), (0x30, 1 << 16), (0x30, 1 << 20)],
)
def test_values_that_msrs_do_not_take(board, number, value):
    board.lapic.apic_base = X2APIC
    assert not board.lapic.x2apic_write(0x800 + number, value)


def test_self_ipi(board):
    board.lapic.apic_base = X2APIC
    assert board.lapic.x2apic_write(0x83F, 0x41)
    assert board.lapic.pending_vector() == 0x41


# The timer


def started(lvtt, count=1_000_000, divide=DIVIDE_BY_1):
    board = Board()
    board.write(TDCR, divide)
    board.write(LVTT, lvtt)
    board.write(TMICT, count)
    return board


@pytest.mark.parametrize(
    ("register", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)],
)
def test_divisors(register, divisor):
    board = started(0x41, 1_000, register)
    assert board.lapic.deadline == board.clock.time + 1_000 * divisor
    board.clock.time += 300 * divisor
    assert board.read(TMCCT) == 700


def test_one_shot():
    board = started(0x41, 1_000)
    assert not board.advance(999) and board.advance(1)
    assert board.lapic.deadline is None and board.read(TMCCT) == 0
    assert not board.advance(10_000)


@given(st.integers(200_000, 2_000_000), st.lists(st.integers(1, 9_000_000), max_size=20))
def test_periodic_stays_on_multiples(period, pauses):
    board = started(0x41 | PERIODIC, period)
    begin = board.clock.time
    for pause in pauses:
        before = (board.clock.time - begin) // period
        came = board.advance(pause)
        elapsed = board.clock.time - begin
        assert came == (elapsed // period > before)
        assert board.lapic.deadline == begin + (elapsed // period + 1) * period
        assert board.read(TMCCT) == period - elapsed % period


def test_a_period_has_a_lower_bound():
    board = started(0x41 | PERIODIC, 1)
    assert board.lapic.deadline == board.clock.time + 200_000


def test_the_count_is_kept_by_a_new_divisor():
    board = started(0x41, 1_000)
    board.clock.time += 600
    board.write(TDCR, 0)
    assert board.read(TMCCT) == 400 and board.lapic.deadline == board.clock.time + 800


def test_masked_the_timer_runs_but_tells_nobody():
    board = started(0x41 | MASKED, 1_000)
    assert not board.advance(1_000) and board.lapic.deadline is None


def test_a_count_of_0_stops_it():
    board = started(0x41, 1_000)
    board.write(TMICT, 0)
    assert board.lapic.deadline is None


def test_tsc_deadline():
    board = started(0x41 | DEADLINE)
    assert board.read(TMICT) == 0 and board.lapic.deadline is None
    board.lapic.tsc_deadline = 2 * (board.clock.time + 500) - 1
    assert not board.advance(499)
    assert board.advance(1) and board.lapic.tsc_deadline == 0
    board.lapic.tsc_deadline = 1
    assert board.advance(0), "what is past is due at once"
    board.lapic.tsc_deadline = 1 << 40
    board.lapic.tsc_deadline = 0
    assert board.lapic.deadline is None


@pytest.mark.parametrize("lvtt", [0x41, 0x41 | PERIODIC])
def test_a_tsc_deadline_is_dropped_in_other_modes(lvtt):
    board = started(lvtt)
    before = board.lapic.deadline
    board.lapic.tsc_deadline = 1 << 40
    assert board.lapic.tsc_deadline == 0 and board.lapic.deadline == before


def test_when_disabled_a_tsc_deadline_reads_0_and_is_dropped():
    board = started(0x41 | DEADLINE)
    board.lapic.tsc_deadline = 1 << 40
    board.lapic.apic_base = DISABLED
    assert board.lapic.tsc_deadline == 0
    board.lapic.tsc_deadline = 1 << 41
    board.lapic.apic_base = XAPIC
    assert board.lapic.tsc_deadline == 1 << 40


@pytest.mark.parametrize("lvtt", [0x41 | DEADLINE, 0x41])
def test_to_and_from_tsc_deadline_mode_the_timer_stops(lvtt):
    board = started(lvtt)
    board.lapic.tsc_deadline = 1 << 40
    assert board.lapic.deadline is not None
    board.write(LVTT, lvtt ^ DEADLINE)
    assert board.lapic.deadline is None and board.read(TMICT) == 0


# State


@pytest.mark.parametrize("base", [XAPIC, X2APIC])
def test_state_goes_to_another(base):
    board = started(0x41 | PERIODIC)
    board.write(ID, 9 << 24)
    board.write(LDR, 4 << 24)
    board.request(0x62, True)
    board.lapic.acknowledge()
    board.request(0x71)
    board.clock.time += 300_000
    board.lapic.apic_base = base
    page = board.lapic.get_state()
    other = Board()
    other.lapic.apic_base = base
    other.lapic.set_state(page)
    assert len(page) == 1024 and other.lapic.get_state() == page
    assert page[ID : ID + 4] == bytes((0, 0, 0, 9 if base == XAPIC else 1))
    assert other.lapic.deadline == other.clock.time + 700_000
    assert other.lapic.pending_vector() == 0x71 and ("wake",) in other.told


@pytest.mark.parametrize(
    ("lvtt", "left", "deadline"),
    [(PERIODIC, 0, 1_000_000), (PERIODIC, 9_000_000, 1_000_000), (0, 0, 0), (0, 7, 7)],
)
def test_what_is_left_of_a_restored_count(lvtt, left, deadline):
    page = bytearray(started(0x41 | lvtt).lapic.get_state())
    page[TMCCT : TMCCT + 4] = left.to_bytes(4, "little")
    board = Board()
    board.lapic.set_state(bytes(page))
    assert board.lapic.deadline == board.clock.time + deadline
