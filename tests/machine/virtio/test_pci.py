"""Virtio over PCI: discovery, status, features, interrupts."""

import pytest

from kvmsr.machine.board.virtio import VirtioConsole
from tests.machine.virtio.driver import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    NEEDS_RESET,
    VERSION_1,
    WRITE,
    Driver,
)

COMMON, NOTIFY, ISR, DEVICE, WINDOW = range(1, 6)
RECEIVE, TRANSMIT = 0, 1


@pytest.fixture
def sent():
    return []


@pytest.fixture
def driver(sent):
    return Driver(VirtioConsole(sent.append))


def transmit(driver, data=b"hi"):
    driver.offer(TRANSMIT, (driver.buffer(len(data), data), len(data), 0))
    driver.notify(TRANSMIT)


def test_it_is_found_by_its_numbers_and_capabilities(driver):
    assert driver.config(0) == 0x10431AF4
    assert driver.config(8) == 0x07800001
    assert driver.config(0x2C) >> 16 >= 0x40
    assert set(driver.parts) == {COMMON, NOTIFY, ISR, DEVICE, WINDOW}
    assert driver.read(COMMON, 18, 2) == 2
    assert driver.offered() == VERSION_1
    assert driver.status == 0


def test_features_that_are_not_offered_are_not_accepted(driver):
    for features in (0, VERSION_1 | 1 << 28, VERSION_1 | 1 << 33):
        driver.status = 0
        driver.accept(features)
        driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        assert not driver.status & FEATURES_OK
    driver.status = 0
    driver.accept(VERSION_1)
    driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
    assert driver.status & FEATURES_OK
    driver.accept(0)  # too late
    driver.write(COMMON, 8, 4, 1)
    assert driver.read(COMMON, 12, 4) == 1


def test_a_queues_registers(driver):
    driver.begin(size=4)
    driver.write(COMMON, 22, 2, TRANSMIT)
    assert (driver.read(COMMON, 24, 2), driver.read(COMMON, 28, 2)) == (4, 1)
    assert driver.read(COMMON, 30, 2) == TRANSMIT
    assert driver.read(COMMON, 32, 8) == 0x20000
    driver.write(COMMON, 24, 2, 8)  # it is in use
    assert driver.read(COMMON, 24, 2) == 4
    driver.write(COMMON, 22, 2, 2)  # there is none
    assert driver.read(COMMON, 24, 2) == 0
    driver.write(COMMON, 28, 2, 1)
    driver.status = 0
    driver.write(COMMON, 22, 2, TRANSMIT)
    assert (driver.read(COMMON, 24, 2), driver.read(COMMON, 28, 2)) == (64, 0)
    driver.write(COMMON, 32, 8, 0x123456789ABCDEF0)
    assert driver.read(COMMON, 36, 4) == 0x12345678


def test_nothing_happens_before_the_driver_is_ready(driver, sent):
    driver.begin()
    driver.status = 0
    driver.accept(VERSION_1)
    driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
    driver.set_up(TRANSMIT, 8, 0x20000)
    transmit(driver)
    assert sent == []
    driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    assert sent == [b"hi"]  # it was there already
    driver.write(NOTIFY, 4 * 7, 2, 7)  # no such queue


def test_the_pin_is_asserted_until_isr_is_read(driver):
    driver.begin()
    assert driver.lines == []
    transmit(driver)
    assert driver.lines == [(10, True)]
    assert driver.config(6, 2) & 8
    assert driver.read(ISR, 0, 1) == 1
    assert driver.lines == [(10, True), (10, False)]
    assert not driver.config(6, 2) & 8
    assert driver.read(ISR, 0, 1) == 0


def test_the_command_register_turns_the_pin_off(driver):
    driver.begin()
    driver.function.write_config(4, 2, 0x0406)
    transmit(driver)
    assert driver.lines == []
    driver.function.write_config(4, 2, 0x0006)
    assert driver.lines == [(10, True)]


def test_a_driver_that_polls_is_not_interrupted(driver):
    driver.begin()
    driver.host.bytes[0x21000] = 1  # in the available ring
    transmit(driver)
    assert driver.used(TRANSMIT)[0] == 1
    assert driver.lines == []


def test_messages_go_where_the_table_says(driver):
    driver.enable_msix()
    driver.vector(1, 0xFEE00000, 0x41)
    driver.vector(2, 0xFEE01000, 0x42)
    driver.begin()
    driver.write(COMMON, 22, 2, TRANSMIT)
    assert driver.read(COMMON, 26, 2) == 0xFFFF
    transmit(driver)
    assert driver.host.messages == []
    driver.write(COMMON, 26, 2, 2)
    assert driver.read(COMMON, 26, 2) == 2
    transmit(driver)
    assert driver.host.messages == [(0xFEE01000, 0x42)]
    assert driver.lines == []
    driver.write(COMMON, 26, 2, 3)  # there is none
    assert driver.read(COMMON, 26, 2) == 0xFFFF


@pytest.mark.parametrize("masked", ["vector", "function"])
def test_masked_messages_are_pending(driver, masked):
    driver.enable_msix(0xC000 if masked == "function" else 0x8000)
    driver.vector(2, 0xFEE01000, 0x42, mask=masked == "vector")
    driver.begin()
    driver.write(COMMON, 22, 2, TRANSMIT)
    driver.write(COMMON, 26, 2, 2)
    pending = lambda: driver.bus.memory.read((driver.config(0x14) & ~0xF) + 0x800, 8)  # noqa: E731
    for _ in range(2):
        transmit(driver)
    assert driver.host.messages == []
    assert pending() == 1 << 2
    if masked == "vector":
        driver.vector(2, 0xFEE01000, 0x43)
    else:
        driver.enable_msix()
    assert driver.host.messages == [(0xFEE01000, 0x43 if masked == "vector" else 0x42)]
    assert pending() == 0


def test_registers_are_reached_through_configuration_space(driver, sent):
    (at,) = (
        at for kind, at in driver.capabilities() if kind == 9 and driver.config(at + 3, 1) == 5
    )

    def window(offset, size):
        driver.function.write_config(at + 4, 1, 0)
        driver.function.write_config(at + 8, 4, offset)
        driver.function.write_config(at + 12, 4, size)

    window(18, 2)
    assert driver.function.read_config(at + 16, 2) == 2  # the number of queues
    driver.begin()
    window(20, 1)
    assert driver.function.read_config(at + 16, 1) == driver.status
    driver.function.write_config(at + 16, 1, 0)
    assert driver.status == 0
    for offset, size in ((0x10000, 4), (0, 3), (0xFFFFFFFF, 4), (2, 4)):
        window(offset, size)
        driver.function.read_config(at + 16, 4)
        driver.function.write_config(at + 16, 4, 1)


def test_a_broken_queue_needs_a_reset_and_is_told_once(driver, sent):
    driver.begin()
    for _ in range(3):
        driver.offer(TRANSMIT, (1 << 40, 8, 0))
        driver.notify(TRANSMIT)
        assert driver.status & NEEDS_RESET
        assert driver.read(ISR, 0, 1) == 2
        transmit(driver)
        assert sent == []
        driver.begin()
        assert not driver.status & NEEDS_RESET
    transmit(driver)
    assert sent == [b"hi"]
    (note,) = driver.notes
    assert "queue 1 of virtio-console" in note
    assert "0x10000000000" in note


@pytest.mark.parametrize(
    "offset, value",
    [(32, 0x20008), (40, 0x21001), (48, 0x22002), (32, 4 << 20), (52, 1), (24, 65)],
)
def test_rings_that_cannot_be(driver, offset, value):
    driver.begin()
    driver.status = 0
    driver.accept(VERSION_1)
    driver.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
    driver.write(COMMON, 22, 2, TRANSMIT)
    for at, address in ((32, 0x20000), (40, 0x21000), (48, 0x22000)):
        driver.write(COMMON, at, 4, address)
    driver.write(COMMON, offset, 2 if offset == 24 else 4, value)
    driver.write(COMMON, 28, 2, 1)
    assert driver.read(COMMON, 28, 2) == 0
    assert driver.status & NEEDS_RESET
    assert len(driver.notes) == 1


def test_the_console_sends_and_receives(driver, sent):
    device = driver.device
    device.receive(b"early")
    driver.begin()
    assert device.backlog == 5
    room = driver.buffer(3), driver.buffer(64)
    driver.offer(RECEIVE, (room[0], 3, WRITE))
    driver.offer(RECEIVE, (room[1], 64, WRITE), first=1)
    driver.notify(RECEIVE)
    assert driver.used(RECEIVE) == (2, 1, 2)
    assert driver.host.memory_at(room[0], 3) == b"ear"
    assert driver.host.memory_at(room[1], 3) == b"ly\xcc"
    assert driver.host.written == [(room[0], 3), (room[1], 2)]
    assert device.backlog == 0
    driver.offer(RECEIVE, (room[0], 3, WRITE), (room[1], 64, WRITE), first=2)
    driver.lines.clear()
    driver.read(ISR, 0, 1)
    device.receive(b"later")
    assert driver.used(RECEIVE) == (3, 2, 5)
    assert driver.lines == [(10, False), (10, True)]
    first, second = driver.buffer(2, b"to"), driver.buffer(4, b"gone")
    driver.offer(TRANSMIT, (first, 2, 0), (second, 4, 0), (room[0], 3, WRITE))
    driver.notify(TRANSMIT)
    assert b"".join(sent) == b"togone"
    assert driver.used(TRANSMIT) == (1, 0, 0)
