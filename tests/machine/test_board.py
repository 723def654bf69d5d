"""The devices of the board, register by register."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import BrokenInvariantError
from kvmsr.kvm.exits import IoIn, IoOut, MmioRead, MmioWrite
from kvmsr.machine.board import small, testdev
from kvmsr.machine.board.bus import Bus
from kvmsr.machine.board.cmos import Cmos
from kvmsr.machine.board.fwcfg import FwCfg
from kvmsr.machine.board.uart import Uart
from tests.machine.images import Ram

# The bus


class Recorder:
    def __init__(self):
        self.seen = []

    def read(self, address, size):
        self.seen.append(("read", address, size))
        return address & 0xFF

    def write(self, address, size, value):
        self.seen.append(("write", address, size, value))


def test_unknown_ports_read_all_ones_and_take_anything():
    bus = Bus()
    data = bytearray(8)
    bus.port_in(IoIn(0x1234, 4, 2, memoryview(data)))
    assert data == b"\xff" * 8
    bus.port_out(IoOut(0x1234, 4, 2, memoryview(data)))
    data = bytearray(8)
    bus.memory_read(MmioRead(0xD0000000, memoryview(data)))
    assert data == b"\xff" * 8
    bus.memory_write(MmioWrite(0xD0000000, memoryview(data)))


def test_a_wide_access_to_byte_registers_is_cut_up():
    bus, device = Bus(), Recorder()
    bus.add_ports(0x70, 2, device)
    assert bus.read_port(0x70, 4) == 0xFFFF7170
    bus.write_port(0x70, 2, 0xABCD)
    assert device.seen == [
        ("read", 0x70, 1),
        ("read", 0x71, 1),
        ("write", 0x70, 1, 0xCD),
        ("write", 0x71, 1, 0xAB),
    ]


def test_ports_that_move_give_way_to_others():
    bus, fixed, movable = Bus(), Recorder(), Recorder()
    base = 0x70
    bus.add_ports(0x70, 2, fixed)
    bus.add_movable_ports(lambda port: base <= port < base + 4, movable)
    assert bus.read_port(0x70, 1) == 0x70
    bus.write_port(0x72, 1, 5)
    base = 0x600
    assert bus.read_port(0x72, 1) == 0xFF
    bus.write_port(0x602, 2, 7)
    assert fixed.seen == [("read", 0x70, 1)]
    assert movable.seen == [("write", 0x72, 1, 5), ("write", 0x602, 2, 7)]


def test_strings_go_value_by_value():
    bus, device = Bus(), Recorder()
    bus.add_ports(0x510, 1, device, bytewise=False)
    bus.port_out(IoOut(0x510, 2, 3, memoryview(b"\1\0\2\0\3\0")))
    assert [entry[3] for entry in device.seen] == [1, 2, 3]


def test_two_devices_at_one_port_are_our_mistake():
    bus = Bus()
    bus.add_ports(0x60, 1, Recorder())
    with pytest.raises(BrokenInvariantError):
        bus.add_ports(0x60, 1, Recorder())


# UART


class Line:
    """A UART, what it sent, and the level of its interrupt line."""

    def __init__(self):
        self.sent = b""
        self.level = False
        self.edges = 0
        self.uart = Uart(0, self.send, self.set)

    def send(self, data):
        self.sent += data

    def set(self, level):
        assert level != self.level
        self.level = level
        self.edges += level

    def __getitem__(self, register):
        return self.uart.read(register, 1)

    def __setitem__(self, register, value):
        self.uart.write(register, 1, value)


RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)


def test_what_is_written_is_sent():
    line = Line()
    for byte in b"hi\n":
        assert line[LSR] & 0x60 == 0x60
        line[RBR] = byte
    assert line.sent == b"hi\n"
    assert not line.level


def test_the_transmit_interrupt_comes_with_each_character_and_goes_when_it_is_read():
    line = Line()
    line[MCR] = 0x08
    line[IER] = 0x02
    assert line.level
    assert line[IIR] & 0x0F == 0x02
    assert not line.level
    line[RBR] = 0x41
    assert line.level
    edges = line.edges
    line[RBR] = 0x42  # without reading: there must be another edge
    assert line.edges == edges + 1
    line[IER] = 0
    assert not line.level
    assert line[IIR] & 0x0F == 0x01


def test_received_characters_interrupt_until_they_are_read():
    line = Line()
    line[MCR] = 0x08
    line[IER] = 0x01
    line.uart.receive(b"ab")
    assert line.level
    assert line[IIR] & 0x0F == 0x04
    assert line[LSR] & 1
    assert (line[RBR], line.level) == (0x61, True)
    assert (line[RBR], line.level) == (0x62, False)
    assert not line[LSR] & 1
    assert line[RBR] == 0


def test_interrupts_need_out2():
    line = Line()
    line[IER] = 0x01
    line.uart.receive(b"a")
    assert not line.level
    line[MCR] = 0x08
    assert line.level


def test_loop_back_and_the_fifo():
    line = Line()
    line[IIR] = 0x01
    assert line[IIR] & 0xC0 == 0xC0
    line[MCR] = 0x1A  # loop, OUT2, RTS: shows as DCD and CTS
    assert line[MSR] == 0x90
    line[RBR] = 0x55
    assert line.sent == b""
    assert line[RBR] == 0x55
    line[RBR] = 0x56
    line[IIR] = 0x03  # clears what was received
    assert not line[LSR] & 1


@pytest.mark.parametrize("fcr, room", [(0x00, 1), (0x01, 16)])
def test_looped_back_characters_overrun(fcr, room):
    line = Line()
    line[IIR] = fcr
    line[MCR] = 0x10
    for n in range(room):
        line[RBR] = n
        assert not line[LSR] & 2
    line[RBR] = 0xFF
    assert line[LSR] & 2
    assert not line[LSR] & 2  # reading it cleared it
    assert [line[RBR] for _ in range(room)] == list(range(room))
    assert not line[LSR] & 1


def test_divisor_and_scratch():
    line = Line()
    line[LCR] = 0x80
    line[RBR], line[IER] = 0x34, 0x12
    assert (line[RBR], line[IER]) == (0x34, 0x12)
    line[LCR] = 0x03
    assert (line[LCR], line[IER]) == (0x03, 0)
    line[SCR] = 0x5A
    assert line[SCR] == 0x5A


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 255))))
def test_no_sequence_of_accesses_upsets_the_uart(steps):
    line = Line()
    for is_write, register, value in steps:
        if is_write:
            line[register] = value
        else:
            assert 0 <= line[register] <= 255
        if value > 250:
            line.uart.receive(bytes((value,)))


# CMOS


NOON = 1_700_000_000  # Tuesday 2023-11-14 22:13:20 UTC


def cmos_read(cmos, index):
    cmos.write(0x70, 1, index)
    return cmos.read(0x71, 1)


def test_the_clock_shows_the_time_in_bcd_or_binary():
    cmos = Cmos(64 << 20, 0, 1, clock=lambda: NOON)
    fields = (0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00)
    assert [cmos_read(cmos, f) for f in fields] == [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]
    cmos.write(0x70, 1, 0x0B)
    cmos.write(0x71, 1, 0x06)
    assert [cmos_read(cmos, f) for f in fields] == [20, 23, 11, 14, 3, 22, 13, 20]
    assert not cmos_read(cmos, 0x0A) & 0x80
    assert cmos_read(cmos, 0x0D) & 0x80


def test_memory_sizes_for_firmware():
    cmos = Cmos(1 << 30, 3 << 30, 4)
    word = lambda at: cmos_read(cmos, at) | cmos_read(cmos, at + 1) << 8  # noqa: E731
    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == 0xFFFF
    assert word(0x34) << 16 == (1 << 30) - (16 << 20)
    assert (word(0x5B) | cmos_read(cmos, 0x5D) << 16) << 16 == 3 << 30
    assert cmos_read(cmos, 0x5F) == 3
    cmos.write(0x70, 1, 0x8F)  # bit 7 masks NMIs
    cmos.write(0x71, 1, 0xAB)
    assert cmos_read(cmos, 0x0F) == 0xAB


# fw_cfg


@pytest.fixture
def fwcfg():
    ram = Ram(1 << 20)
    device = FwCfg(64 << 20, 3, [(0, 0x9FC00, 1), (0x100000, 0x3F00000, 1)], ram.memory_at)
    device.ram = ram
    return device


def item(device, key, size):
    device.write(0x510, 2, key)
    return bytes(device.read(0x511, 1) for _ in range(size))


def test_fw_cfg_items(fwcfg):
    assert item(fwcfg, 0x00, 6) == b"QEMU\0\0"
    assert item(fwcfg, 0x01, 4) == b"\3\0\0\0"
    assert item(fwcfg, 0x03, 8) == struct.pack("<Q", 64 << 20)
    assert item(fwcfg, 0x05, 2) == item(fwcfg, 0x0F, 2) == b"\3\0"
    assert item(fwcfg, 0x8000, 2) == b"\0\0"
    assert fwcfg.read(0x514, 8).to_bytes(8, "little") == b"QEMU CFG"


def files(device):
    count = int.from_bytes(item(device, 0x19, 4), "big")
    data = item(device, 0x19, 4 + 64 * count)[4:]
    entries = [struct.unpack_from(">IHH56s", data, 64 * n) for n in range(count)]
    return {name.rstrip(b"\0").decode(): (key, size) for size, key, _, name in entries}


def test_fw_cfg_files(fwcfg):
    key, size = files(fwcfg)["etc/e820"]
    assert item(fwcfg, key, size) == struct.pack("<QQIQQI", 0, 0x9FC00, 1, 0x100000, 0x3F00000, 1)
    key, size = files(fwcfg)["etc/boot-fail-wait"]
    assert int.from_bytes(item(fwcfg, key, size), "little") == 0


def dma(device, control, length, target, at=0x1000):
    device.ram.memory_at(at, 16)[:] = struct.pack(">IIQ", control, length, target)
    device.write(0x514, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
    device.write(0x518, 4, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
    return struct.unpack(">I", device.ram.memory_at(at, 4))[0]


def test_fw_cfg_dma(fwcfg):
    assert dma(fwcfg, 0x03 << 16 | 8 | 2, 8, 0x2000) == 0  # select the RAM's size, and read
    assert fwcfg.ram.memory_at(0x2000, 8) == struct.pack("<Q", 64 << 20)
    assert dma(fwcfg, 0x00 << 16 | 8 | 4, 2, 0) == 0  # select the signature, and skip
    assert dma(fwcfg, 2, 2, 0x2000) == 0
    assert bytes(fwcfg.ram.memory_at(0x2000, 2)) == b"MU"
    assert dma(fwcfg, 2, 8, 0xFFFFFFFF) == 1  # nowhere to put it
    assert dma(fwcfg, 2, 1 << 30, 0) == 1  # a guest cannot make us copy gigabytes
    fwcfg.ram.memory_at(0x4000, 0x80000)[:] = b"\xff" * 0x80000
    assert dma(fwcfg, 0x00 << 16 | 8 | 2, 0x7FFFF, 0x4000) == 0  # behind an item there are zeros
    assert bytes(fwcfg.ram.memory_at(0x4000, 0x80000)) == b"QEMU".ljust(0x7FFFF, b"\0") + b"\xff"
    assert dma(fwcfg, 0x10, 8, 0x2000) == 1  # writes are not for it
    fwcfg.write(0x518, 4, 0xFFFFFFFF)  # the request itself lies nowhere: ignored


# Small devices


def test_debug_console():
    sent = []
    console = small.DebugConsole(sent.append)
    console.write(0x402, 1, 0x41)
    assert sent == [b"A"]
    assert console.read(0x402, 1) == 0xE9


def test_every_way_to_reset_and_to_leave():
    said = []
    keyboard = small.KeyboardController(said.append)
    keyboard.write(0x64, 1, 0xD1)
    keyboard.write(0x60, 1, 0xFE)
    assert said == []
    assert not keyboard.read(0x64, 1) & 2
    keyboard.write(0x64, 1, 0xFE)
    port92 = small.Port92(said.append)
    port92.write(0x92, 1, 2)
    port92.write(0x92, 1, 3)
    small.DebugExit(said.append).write(0xF4, 4, 33)
    assert said == ["keyboard controller", "port 0x92", 33]


def test_acpi_power_management():
    said, now = [], [0]
    pm = small.AcpiPm(lambda: said.append("off"), clock_ns=lambda: now[0])
    now[0] = 1_000_000_000
    assert pm.read(0x608, 4) == 3_579_545
    now[0] = 5_000_000_000
    assert pm.read(0x608, 4) == 5 * 3_579_545 & 0xFFFFFF
    assert pm.read(0x604, 2) & 1
    pm.write(0x602, 2, 0x100)
    assert (pm.read(0x600, 2), pm.read(0x602, 2)) == (0, 0x100)
    pm.write(0x604, 2, 1)
    assert said == []
    pm.write(0x604, 2, 0x2401)  # a sleep type that the DSDT does not have
    assert said == []
    pm.write(0x604, 2, 0x2001)
    assert said == ["off"]


def test_the_test_device():
    port = testdev.TestPort()
    port.write(0xE0, 4, 0x12345678)
    port.write(0xE1, 1, 0xFF)
    assert port.read(0xE0, 4) == 0x1234FF78
    memory = testdev.TestMemory()
    memory.write(0xFF000010, 8, 0x1122334455667788)
    assert memory.read(0xFF000012, 2) == 0x5566
    memory.write(0xFF00FFFE, 4, 0xFFFFFFFF)
    assert memory.read(0xFF00FFFE, 4) == 0xFFFF
    lines = []
    testdev.TestIrqLines(lambda line, level: lines.append((line, level))).write(0x2005, 1, 1)
    assert lines == [(5, True)]
