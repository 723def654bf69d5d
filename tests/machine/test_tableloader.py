"""ACPI tables that firmware places: its part is played here, by the script's rules."""

import struct

import pytest

from kvmsr.machine import acpi
from kvmsr.machine.board.fwcfg import FwCfg
from kvmsr.machine.tableloader import add_tables
from tests.machine.images import Ram
from tests.machine.test_board import files, item

TABLES_AT, RSDP_AT = 0x6C0040, 0xF5A30


class Firmware:
    """
    What follows the script, with the tables at one place and the RSDP at another.

    :param corrects: whether a checksum is what is there, less the sum, as in SeaBIOS; in OVMF it is
        just the negative sum.
    """

    def __init__(self, fwcfg, corrects):
        self._fwcfg = fwcfg
        self._corrects = corrects
        self.memory = {}
        self.places = {}
        script = self.read("etc/table-loader")
        assert len(script) % 128 == 0
        for at in range(0, len(script), 128):
            (command,) = struct.unpack_from("<I", script, at)
            (self.allocate, self.add_pointer, self.add_checksum)[command - 1](script, at + 4)

    def read(self, name):
        key, size = files(self._fwcfg)[name]
        return item(self._fwcfg, key, size)

    def allocate(self, script, at):
        name, alignment, zone = struct.unpack_from("<56sIB", script, at)
        name = name.rstrip(b"\0").decode()
        self.places[name] = {1: TABLES_AT, 2: RSDP_AT}[zone]
        assert self.places[name] % alignment == 0
        self.memory[name] = bytearray(self.read(name))

    def add_pointer(self, script, at):
        target, source, offset, size = struct.unpack_from("<56s56sIB", script, at)
        data = self.memory[target.rstrip(b"\0").decode()]
        value = int.from_bytes(data[offset : offset + size], "little")
        value += self.places[source.rstrip(b"\0").decode()]
        data[offset : offset + size] = value.to_bytes(size, "little")

    def add_checksum(self, script, at):
        name, offset, start, size = struct.unpack_from("<56sIII", script, at)
        data = self.memory[name.rstrip(b"\0").decode()]
        before = data[offset] if self._corrects else 0
        data[offset] = (before - sum(data[start : start + size])) & 0xFF


@pytest.mark.parametrize("cpus", [1, 300])
@pytest.mark.parametrize("corrects", [True, False])
def test_firmware_places_the_tables_as_we_do(cpus, corrects):
    ports = [0]
    fwcfg = FwCfg(64 << 20, cpus, [], Ram(1 << 20).memory_at)
    add_tables(fwcfg, lambda: acpi.About(cpus, 64 << 20, ports[0]))
    ports[0] = 0xB000  # firmware decides that before it reads the tables
    firmware = Firmware(fwcfg, corrects)
    expected = acpi.Tables(TABLES_AT, acpi.About(cpus, 64 << 20, 0xB000))
    assert firmware.memory["etc/acpi/tables"] == expected.image
    assert firmware.memory["etc/acpi/rsdp"] == acpi.rsdp(TABLES_AT + expected.xsdt)
