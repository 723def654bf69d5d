# SPDX-License-Identifier: Apache-2.0
"""The controllers together: from a line or a message to the vCPUs."""

import errno

import pytest

from kvmsr.abi.vm import Irqchip, IrqRoutingEntry
from kvmsr.backend.soft.irqchip import IrqChip

EOI, ICR, ICR2, LDR, DFR, SPIV, LVT0 = 0xB0, 0x300, 0x310, 0xD0, 0xE0, 0xF0, 0x350
XAPIC, X2APIC, DISABLED = 0xFEE0_0800, 0xFEE0_0C00, 0xFEE0_0000
LOGICAL, LOWEST, NMI = 1 << 11, 1 << 8, 4 << 8
MASKED, LEVEL = 1 << 16, 1 << 15
VECTOR = 0x41
PIC, SLAVE, IOAPIC = 0, 1, 2


class Clock:
    """Time that stands still."""

    def now(self):
        return 0

    def tsc_to_ns(self, tsc):
        return tsc


class Cpu:
    """A vCPU and its local APIC."""

    def __init__(self, chip, number):
        self.chip, self.told = chip, []
        self.lapic = chip.add_lapic(number, Clock(), self, number == 0)
        self.write(SPIV, 0x1FF)

    def __getattr__(self, name):
        if name not in ("wake", "nmi", "smi", "unhalt", "init", "sipi"):
            raise AttributeError(name)
        return lambda *arguments: self.told.append((name, *arguments))

    def eoi(self, vector):
        pass

    def write(self, offset, value):
        self.lapic.mmio_write(offset, 4, value)

    def command(self, icr, dest=0):
        if self.lapic.is_x2apic:
            assert self.lapic.x2apic_write(0x830, dest << 32 | icr)
        else:
            self.write(ICR2, dest << 24)
            self.write(ICR, icr)

    def take(self):
        """Do what a vCPU does for an interrupt, and end it."""
        vector = self.chip.interrupt_for(self.lapic)
        if self.lapic.is_x2apic:
            self.lapic.x2apic_write(0x80B, 0)
        else:
            self.write(EOI, 0)
        return vector


class Pit:
    """One that counts what it is told."""

    def __init__(self):
        self.acks = self.unmasks = 0

    def acked(self):
        self.acks += 1

    def unmasked(self):
        self.unmasks += 1


@pytest.fixture
def chip():
    return IrqChip()


@pytest.fixture
def cpus(chip):
    return [Cpu(chip, number) for number in range(4)]


def takers(cpus):
    """Whom the last interrupt went to."""
    found = [cpu.lapic.id for cpu in cpus if cpu.lapic.pending_vector() is not None]
    assert all(cpu.take() in (VECTOR, None) for cpu in cpus)
    return found


def program(chip, pin, entry):
    for register, value in ((0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry)):
        chip.ioapic.mmio_write(0x00, 4, register)
        chip.ioapic.mmio_write(0x10, 4, value & 0xFFFF_FFFF)


def start_pic(chip):
    for command, base, cascade in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        chip.pic.port_write(command, 1, 0x11)
        for value in (base, cascade, 1):
            chip.pic.port_write(command + 1, 1, value)


def route(gsi, chip_id, pin, **fields):
    entry = IrqRoutingEntry(gsi=gsi, type=1, **fields)
    entry.u.irqchip.irqchip, entry.u.irqchip.pin = chip_id, pin
    return entry


def msi_route(gsi, address=0xFEE0_0000, data=VECTOR, **fields):
    entry = IrqRoutingEntry(gsi=gsi, type=2, **fields)
    entry.u.msi.address_lo, entry.u.msi.data = address, data
    return entry


# IPIs


@pytest.mark.parametrize(
    ("icr", "dest", "expected"),
    [
        (VECTOR, 2, [2]),
        (VECTOR, 9, []),
        (VECTOR, 0xFF, [0, 1, 2, 3]),
        (1 << 18 | VECTOR, 3, [0]),
        (2 << 18 | VECTOR, 3, [0, 1, 2, 3]),
        (3 << 18 | VECTOR, 3, [1, 2, 3]),
        (LOGICAL | VECTOR, 0b1010, [1, 3]),
        (LOGICAL | VECTOR, 0xFF, [0, 1, 2, 3]),
        (LOWEST | VECTOR, 0xFF, [0, 1, 2, 3]),
    ],
)
def test_destinations(cpus, icr, dest, expected):
    for cpu in cpus:
        cpu.write(LDR, 1 << cpu.lapic.id + 24)
    cpus[0].command(icr, dest)
    assert takers(cpus) == expected


def test_clusters(cpus):
    for cpu in cpus:
        cpu.write(DFR, 0)
        cpu.write(LDR, (cpu.lapic.id // 2 << 4 | 1 << cpu.lapic.id % 2) << 24)
    for dest, expected in ((0x03, [0, 1]), (0x12, [3]), (0x23, [])):
        cpus[0].command(LOGICAL | VECTOR, dest)
        assert takers(cpus) == expected


def test_x2apic_destinations(chip):
    cpus = [Cpu(chip, number) for number in (0, 3, 0x11, 0x12)]
    for cpu in cpus:
        cpu.lapic.apic_base = X2APIC
    for icr, dest, expected in (
        (VECTOR, 0x11, [0x11]),
        (VECTOR, 0xFF, []),
        (VECTOR, 0xFFFF_FFFF, [0, 3, 0x11, 0x12]),
        (LOGICAL | VECTOR, 0x1_0006, [0x11, 0x12]),
        (LOGICAL | VECTOR, 0x0_0009, [0, 3]),
    ):
        cpus[0].command(icr, dest)
        assert takers(cpus) == expected


def test_a_destination_model_that_is_none_matches_nothing(cpus):
    for cpu in cpus:
        cpu.write(DFR, 5 << 28)
        cpu.write(LDR, (1 << cpu.lapic.id) << 24)
    cpus[0].command(LOGICAL | VECTOR, 0x0F)
    assert takers(cpus) == []


def test_an_id_beyond_xapic_reaches_a_vcpu_that_is_still_in_that_mode(chip):
    sender, target = Cpu(chip, 0), Cpu(chip, 0x105)
    sender.lapic.apic_base = X2APIC
    sender.command(VECTOR, 0x105)
    assert takers([sender, target]) == [0x105]


def test_a_broadcast_stays_in_its_mode_but_a_devices_is_for_all(chip, cpus):
    cpus[2].lapic.apic_base = X2APIC
    cpus[0].command(VECTOR, 0xFF)
    assert takers(cpus) == [0, 1, 3]
    assert chip.signal_msi(0xFEEF_F000, VECTOR) == 4
    assert takers(cpus) == [0, 1, 2, 3]


def test_a_changed_id_is_the_address(cpus):
    cpus[1].write(0x20, 7 << 24)
    cpus[0].command(VECTOR, 7)
    assert takers(cpus) == [1]


def test_lowest_priority_goes_to_one_that_can_take_it(chip, cpus):
    for cpu in cpus:
        cpu.write(LDR, 1 << cpu.lapic.id + 24)
    cpus[1].write(SPIV, 0xFF)
    cpus[2].lapic.apic_base = DISABLED
    for vector in (0x40, 0x41):
        assert chip.signal_msi(0xFEEF_F004, LOWEST | vector) == 1
    assert [cpu.take() for cpu in cpus] == [0x40, None, None, 0x41]


def test_a_redirection_hint_is_for_one(chip, cpus):
    assert chip.signal_msi(0xFEEF_F008, VECTOR) == 1
    assert len(takers(cpus)) == 1


def test_a_disabled_local_apic_hears_nothing(cpus):
    cpus[1].lapic.apic_base = DISABLED
    cpus[1].told.clear()
    cpus[0].command(3 << 18 | NMI)
    assert not cpus[1].told and ("nmi",) in cpus[2].told


def test_init_and_startup(cpus):
    cpus[0].command(0xC500, 1)  # INIT, asserted
    cpus[0].command(0x8500, 1)  # and de-asserted, as old guests do
    cpus[0].command(0x469A, 1)
    assert [event for event in cpus[1].told if event[0] != "wake"] == [("init",), ("sipi", 0x9A)]


# Lines


def test_default_routes(chip, cpus):
    start_pic(chip)
    for gsi in range(24):
        program(chip, gsi, 0x60 + gsi)
        assert chip.set_irq(gsi, True) == (2 if gsi < 16 else 1)
        assert cpus[0].lapic.pending_vector() == 0x60 + gsi
        assert chip.pic.output == (gsi < 16)
        while chip.interrupt_for(cpus[0].lapic) is not None:
            pass
        chip.set_irq(gsi, False)
        cpus[0].write(EOI, 0)
        for port in (0xA0, 0x20):
            chip.pic.port_write(port, 1, 0x20)


def test_line_status(chip, cpus):
    assert chip.set_irq(99, True) == -1
    assert chip.set_irq(20, True) == -1, "masked"
    chip.set_irq(20, False)
    program(chip, 20, VECTOR)
    assert chip.set_irq(20, True) == 1
    assert chip.set_irq(20, True) == 0, "coalesced"
    assert chip.set_irq(20, False) == 1


def test_a_level_comes_until_the_line_falls(chip, cpus):
    program(chip, 20, LEVEL | VECTOR)
    chip.set_irq(20, True)
    assert [cpus[0].take() for _ in range(3)] == [VECTOR] * 3
    chip.set_irq(20, False)
    assert [cpus[0].take() for _ in range(2)] == [VECTOR, None]


def test_the_8259s_come_first_where_they_come_through(chip, cpus):
    start_pic(chip)
    cpus[0].write(LVT0, 0x700)
    for cpu in cpus:
        cpu.told.clear()
    chip.set_irq(4, True)
    assert cpus[0].told == [("wake",)] and not cpus[1].told
    assert chip.has_interrupt(cpus[0].lapic) and not chip.has_interrupt(cpus[1].lapic)
    cpus[0].command(1 << 18 | 0xF1)
    assert chip.interrupt_for(cpus[1].lapic) is None
    assert [cpus[0].take() for _ in range(3)] == [0x34, 0xF1, None]


def test_unmasking_lint0_wakes(chip, cpus):
    start_pic(chip)
    cpus[1].write(LVT0, MASKED)
    chip.set_irq(4, True)
    cpus[1].told.clear()
    cpus[1].write(LVT0, 0x700)
    assert cpus[1].told == [("wake",)] and chip.has_interrupt(cpus[1].lapic)


# Routes


def test_routes_replace_each_other(chip, cpus):
    chip.set_routing([route(7, IOAPIC, 20), msi_route(30), route(31, SLAVE, 1)])
    program(chip, 20, VECTOR)
    start_pic(chip)
    assert chip.set_irq(7, True) == 1 and takers(cpus) == [0]
    assert chip.set_irq(30, True) == 1 and takers(cpus) == [0]
    assert chip.set_irq(30, False) == -1
    assert chip.set_irq(31, True) == 1 and chip.pic.acknowledge() == 0x39
    assert chip.set_irq(20, True) == -1


def test_a_device_id_is_no_nonsense(chip, cpus):
    chip.set_routing([msi_route(1, flags=1), route(2, PIC, 0), route(2, SLAVE, 0)])
    assert chip.set_irq(1, True) == 1


@pytest.mark.parametrize(
    "entries",
    [
        [route(4096, IOAPIC, 0)],
        [route(0, IOAPIC, 24)],
        [route(0, PIC, 8)],
        [route(0, SLAVE, 8)],
        [route(0, 3, 0)],
        [route(0, IOAPIC, 0, flags=1)],
        [msi_route(0, flags=2)],
        [IrqRoutingEntry(gsi=0, type=9)],
        [route(0, IOAPIC, 0), route(0, IOAPIC, 1)],
        [msi_route(0), msi_route(0)],
        [route(0, IOAPIC, 0), msi_route(0)],
        [msi_route(0), route(0, IOAPIC, 0)],
    ],
)
def test_routes_that_are_nonsense_change_nothing(chip, cpus, entries):
    with pytest.raises(OSError) as raised:
        chip.set_routing([route(5, IOAPIC, 1), *entries])
    assert raised.value.errno == errno.EINVAL
    program(chip, 20, VECTOR)
    assert chip.set_irq(20, True) == 1


@pytest.mark.parametrize(("data", "taken"), [(VECTOR, 1), (LEVEL | VECTOR, 1), (0x700, 0)])
def test_messages_signalled(chip, cpus, data, taken):
    assert chip.signal_msi(0xFEE0_2000, data) == taken
    assert takers(cpus) == [2] * taken


def test_a_message_to_nobody_is_blocked(chip, cpus):
    cpus[2].write(SPIV, 0xFF)
    assert chip.signal_msi(0xFEE0_2000, VECTOR) == 0
    assert chip.signal_msi(0xFEE0_9000, VECTOR) == 0


# The 8254


def test_the_timer_is_told_through_either_controller(chip, cpus):
    pit = Pit()
    chip.attach_pit(pit)
    start_pic(chip)
    chip.set_irq(0, True)
    chip.set_irq(0, False)
    chip.pic.acknowledge()
    chip.pic.port_write(0x20, 1, 0x20)
    assert pit.acks == 1
    program(chip, 0, VECTOR)
    assert pit.unmasks == 1
    chip.set_irq(0, True)
    assert cpus[0].take() is not None and cpus[0].take() == VECTOR
    assert pit.acks == 2


def test_the_timer_is_told_by_the_pin_that_it_is_routed_to(chip, cpus):
    pit = Pit()
    chip.attach_pit(pit)
    chip.set_routing([route(0, IOAPIC, 2), route(2, IOAPIC, 3)])
    program(chip, 3, 0x50)
    chip.set_irq(2, True)
    assert cpus[1].take() is None and cpus[0].take() == 0x50 and pit.acks == 0
    program(chip, 2, VECTOR)
    chip.set_irq(0, True)
    assert cpus[0].take() == VECTOR and pit.acks == 1


# State


def test_state_by_chip(chip, cpus):
    start_pic(chip)
    program(chip, 20, LEVEL | VECTOR)
    other = IrqChip()
    for chip_id in (PIC, SLAVE, IOAPIC):
        state = Irqchip(chip_id=chip_id)
        chip.get_state(state)
        other.set_state(state)
        copied = Irqchip(chip_id=chip_id)
        other.get_state(copied)
        assert bytes(copied) == bytes(state)
        assert bytes(state.chip) != bytes(Irqchip().chip)


def test_there_are_three_chips(chip):
    for method in (chip.get_state, chip.set_state):
        with pytest.raises(OSError) as raised:
            method(Irqchip(chip_id=3))
        assert raised.value.errno == errno.EINVAL
