"""What a kernel that is started without firmware finds in memory all the same."""

import struct

import pytest

from kvmsr import backend
from kvmsr.machine import Boot, Machine
from tests.conftest import GUESTS


@pytest.fixture
def machine():
    with Machine(backend.open("soft"), memory="32M", cpus=2) as made:
        made.load(Boot(GUESTS / "list.elf"))
        yield made


def test_the_bios_data_areas(machine):
    read = machine.vm.memory_at
    com1, ebda, equipment, low = (
        struct.unpack_from("<H", read(0x400, 0x100), at)[0] for at in (0x00, 0x0E, 0x10, 0x13)
    )
    assert com1 == 0x3F8
    assert equipment >> 9 & 7 == 1  # serial ports
    assert ebda << 4 == low << 10 == 0x9FC00
    assert (ebda << 4) + (read(ebda << 4, 1)[0] << 10) == 0xA0000
    usable, reserved = machine.layout.e820()[:2]
    assert usable == (0, ebda << 4, 1)
    assert reserved[0] == ebda << 4


def test_tables_are_where_a_guest_looks_for_them(machine):
    area = bytes(machine.vm.memory_at(0xE0000, 0x20000))
    places = range(0, len(area), 16)
    assert [at for at in places if area[at : at + 8] == b"RSD PTR "] == [0]
    (smbios,) = (at for at in places if area[at : at + 5] == b"_SM3_")
    assert smbios >= 0x10000
    size, address = struct.unpack_from("<IQ", area, smbios + 12)
    structures = bytes(machine.vm.memory_at(address, size))
    assert structures.endswith(b"\x7f\x04\x00\x7f\0\0")
    assert any(
        start <= address < start + length
        for start, length, kind in machine.layout.e820()
        if kind == 2
    )
