"""The PCI bus: configuration space by its ports, BARs, and what the chipset shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import BrokenInvariantError
from kvmsr.machine import aml
from kvmsr.machine.board.chipset import add_chipset
from kvmsr.machine.board.pci import Bar, Function, Identity, PciBus

CARD = Identity(0x1234, 0x5678, 0x010203, 4, 0x9ABC, 0xDEF0)


class Cells:
    """A device that keeps what is written, and notes the accesses."""

    def __init__(self):
        self.seen = []

    def read(self, address, size):
        self.seen.append((address, size))
        return 0x11223344

    def write(self, address, size, value):
        self.seen.append((address, size, value))


class Ports:
    """A bus as the guest's driver sees it, by mechanism #1."""

    def __init__(self):
        self.resets, self.lines = [], []
        self.bus = PciBus(self.resets.append, lambda line, level: self.lines.append((line, level)))

    def read(self, slot, offset, size, function=0):
        self.bus.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | function << 8 | offset & 0xFC)
        return self.bus.ports.read(0xCFC + offset % 4, size) & (1 << 8 * size) - 1

    def write(self, slot, offset, size, value, function=0):
        self.bus.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | function << 8 | offset & 0xFC)
        self.bus.ports.write(0xCFC + offset % 4, size, value)


@pytest.fixture
def ports():
    return Ports()


@pytest.fixture
def card(ports):
    cells = Cells()
    function = Function(CARD, [Bar(0, 0x4000, cells), Bar(4, 0x20, cells)], pin=1)
    ports.bus.add(5, function)
    return function, cells


def test_the_header_by_bytes_words_and_dwords(ports, card):
    assert ports.read(5, 0, 4) == 0x56781234
    assert ports.read(5, 2, 2) == 0x5678
    assert [ports.read(5, 8 + n, 1) for n in range(4)] == [4, 3, 2, 1]
    assert ports.read(5, 0x2C, 4) == 0xDEF09ABC
    assert ports.read(5, 0x3C, 2) == 0x010B
    ports.write(5, 0, 4, 0)
    ports.write(5, 0x3D, 1, 3)
    ports.write(5, 0x3C, 1, 7)
    assert (ports.read(5, 0, 4), ports.read(5, 0x3C, 2)) == (0x56781234, 0x0107)


@pytest.mark.parametrize("address", [0x80003000, 0x80002900, 0x80012800, 0x00002800, 0x81002800])
def test_where_there_is_nothing_all_ones_are_read(ports, card, address):
    """Another slot, another function, another bus, not enabled, an extended register."""
    ports.bus.ports.write(0xCF8, 4, address)
    assert ports.bus.ports.read(0xCF8, 4) == address
    for port, size in ((0xCFC, 4), (0xCFE, 2), (0xCFF, 1)):
        assert ports.bus.ports.read(port, size) & (1 << 8 * size) - 1 == (1 << 8 * size) - 1
        ports.bus.ports.write(port, size, 0)


def test_accesses_that_reach_past_the_data_port_find_nothing(ports, card):
    ports.bus.ports.write(0xCF8, 4, 0x80002800)
    assert ports.bus.ports.read(0xCFE, 4) == -1


def test_bars_tell_their_size_and_decode_where_they_are_put(ports, card):
    _, cells = card
    for offset, size in ((0x10, 0x4000), (0x20, 0x20), (0x14, 0)):
        ports.write(5, offset, 4, 0xFFFFFFFF)
        assert ports.read(5, offset, 4) == (-size & 0xFFFFFFFF if size else 0)
    ports.write(5, 0x10, 4, 0xD0001234)
    assert ports.read(5, 0x10, 4) == 0xD0000000
    memory = ports.bus.memory
    assert memory.read(0xD0000010, 4) == -1  # memory is not enabled
    ports.write(5, 4, 2, 0xFFFF)
    assert ports.read(5, 4, 2) == 0x0547
    assert memory.read(0xD0000010, 4) == 0x11223344
    memory.write(0xD0003FFE, 2, 7)
    assert memory.read(0xD0003FFE, 4) == -1  # half of it is elsewhere
    assert cells.seen == [(0x10, 4), (0x3FFE, 2, 7)]
    ports.write(5, 0x10, 4, 0xE0000000)
    assert memory.read(0xD0000010, 4) == -1
    assert memory.read(0xE0000000, 1) == 0x11223344
    ports.write(5, 4, 2, 0)
    assert memory.read(0xE0000000, 1) == -1


@pytest.mark.parametrize("base", [0, 0xFEC00000, 0xFFFFC000])
def test_outside_the_bridges_window_nothing_is_decoded(ports, card, base):
    ports.write(5, 4, 2, 2)
    ports.write(5, 0x10, 4, base)
    assert ports.bus.memory.read(base, 4) == -1


def test_what_firmware_does(ports, card):
    other = Function(CARD, [Bar(0, 0x1000, Cells())], pin=1)
    ports.bus.add(6, other)
    ports.bus.assign()
    bases = [(ports.read(slot, at, 4), size) for slot, at, size in
             ((5, 0x10, 0x4000), (5, 0x20, 0x20), (6, 0x10, 0x1000))]  # fmt: skip
    for base, size in bases:
        assert base % size == 0
        assert ports.bus.memory.read(base + size - 4, 4) == 0x11223344
    assert {ports.read(5, 0x3C, 1), ports.read(6, 0x3C, 1)} == {10, 11}


def test_capabilities_are_a_list(ports, card):
    function, _ = card
    assert not ports.read(5, 6, 2) & 0x10
    first = function.add_capability(9, b"\5\0\0", writable=b"\0\xff")
    second = function.add_capability(0x11, b"\7" * 10)
    assert ports.read(5, 6, 2) & 0x10
    assert ports.read(5, 0x34, 1) == first
    assert ports.read(5, first, 2) == second << 8 | 9
    assert ports.read(5, second, 2) == 0x11
    ports.write(5, first, 4, 0xFFFFFFFF)
    assert ports.read(5, first, 4) == 0xFF050009 | second << 8
    with pytest.raises(BrokenInvariantError):
        function.add_capability(9, bytes(250))


def test_what_cannot_be_added(ports, card):
    for slot, number in ((5, 0), (32, 0), (1, 8)):
        with pytest.raises(BrokenInvariantError):
            ports.bus.add(slot, Function(CARD), number)
    with pytest.raises(BrokenInvariantError):
        Function(CARD, [Bar(0, 24, Cells())])


def test_the_reset_register(ports):
    ports.bus.ports.write(0xCF9, 1, 2)
    ports.bus.ports.write(0xCF8, 4, 0x0600)
    assert ports.resets == []
    ports.bus.ports.write(0xCF9, 1, 6)
    assert ports.resets == ["port 0xcf9"]
    assert ports.bus.ports.read(0xCF9, 1) == 0


def test_the_chipset_is_that_of_qemus_pc(ports):
    add_chipset(ports.bus)
    assert ports.read(0, 0, 4) == 0x12378086
    assert ports.read(0, 8, 4) >> 8 == 0x060000
    assert ports.read(1, 0, 4) == 0x70008086
    assert ports.read(1, 14, 1) == 0x80  # several functions
    assert ports.read(1, 0, 4, 3) == 0x71138086
    ports.write(0, 0x59, 1, 0x30)
    assert ports.read(0, 0x59, 1) == 0x30


def test_firmware_says_where_the_power_managements_ports_are(ports):
    power_management = add_chipset(ports.bus)
    assert not any(map(power_management.decodes, range(0x10000)))
    ports.write(1, 0x40, 4, 0xB03F, 3)
    assert ports.read(1, 0x40, 4, 3) == 0xB001
    assert not power_management.decodes(0xB000)
    ports.write(1, 0x80, 1, 0xFF, 3)
    assert [port for port in range(0x10000) if power_management.decodes(port)] == [
        *range(0xB000, 0xB00C)
    ]
    power_management.set_up()
    assert ports.read(1, 0x40, 4, 3) == 0x601
    assert power_management.decodes(0x608)
    assert not power_management.decodes(0xB008)


ACCESSES = st.tuples(
    st.booleans(), st.integers(0xCF8, 0xCFF), st.sampled_from([1, 2, 4]),
    st.integers(0, (1 << 32) - 1) | st.integers(0, 0x3FF).map(lambda low: 1 << 31 | low << 2),
)  # fmt: skip


@given(st.lists(ACCESSES))
def test_no_sequence_of_accesses_upsets_the_bus(accesses):
    ports = Ports()
    add_chipset(ports.bus)
    for is_write, port, size, value in accesses:
        if is_write:
            ports.bus.ports.write(port, size, value)
        else:
            ports.bus.ports.read(port, size)
            ports.bus.memory.read(value, size)
    assert ports.read(0, 0, 4) == 0x12378086


@pytest.mark.parametrize("size, head", [(1, b"\x02"), (62, b"\x3f"), (63, b"\x41\x04"),
                                        (4093, b"\x4f\xff"), (4094, b"\x81\x00\x01")])  # fmt: skip
def test_aml_counts_the_bytes_of_the_length_too(size, head):
    assert aml._sized(b"x" * size) == head + b"x" * size
