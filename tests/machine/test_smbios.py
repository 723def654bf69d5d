"""What the machine says of itself by SMBIOS, read by dmidecode."""

import re
import struct
import subprocess

import pytest

from kvmsr import __version__, backend
from kvmsr.kvm import CpuidEntry, CpuidTable
from kvmsr.machine import Boot, Machine, smbios
from tests.conftest import peer

AT = 0x20  # where a dump has the structures

CPUID = CpuidTable(
    CpuidEntry(function, 0, 0, *values)
    for function, values in {
        0: (1, *struct.unpack("<I8xI", b"Genu........ntel"), 0x49656E69),
        1: (0x000806F8, 0, 0, 0x0F8BFBFF),
        0x80000002: struct.unpack("<4I", b"A quick CPU\0\0\0\0\0"),
    }.items()
)


def structures(memory=512 << 20, cpus=1, firmware=True):
    return smbios.build_structures(memory, cpus, CPUID, firmware=firmware)


def decoded(folder, point, data):
    """Return what dmidecode says of structures: by type, a dict of each one's fields."""
    point = bytearray(point.ljust(AT, b"\0"))
    struct.pack_into("<Q", point, 16, AT)  # in a dump, this is an offset
    point[5] = 0
    point[5] = -sum(point) & 0xFF
    dump = folder / "dump"
    dump.write_bytes(bytes(point) + data)
    words = [peer("dmidecode", "usr/sbin/dmidecode"), "--from-dump", dump]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for word in ("broken", "TRUNCATED", "<BAD", "Wrong", "Invalid", "<OUT OF SPEC>"):
        assert word not in done.stdout
    found = {}
    for part in done.stdout.split("\n\n"):
        kind = re.search(r"DMI type (\d+), ", part)
        if kind:
            assert int(kind[1]) not in found
            found[int(kind[1])] = dict(re.findall(r"^\t([^:]+): (.*)$", part, re.MULTILINE))
            found[int(kind[1])]["lines"] = part.splitlines()
    return found


def test_the_entry_point_leads_to_the_structures():
    data = structures()
    point = smbios.entry_point(0xFF020, data)
    assert point[:5] == b"_SM3_"
    assert sum(point) & 0xFF == 0
    assert len(point) == point[6] == 24
    assert struct.unpack_from("<IQ", point, 12) == (len(data), 0xFF020)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("memory", "size"),
    [(2 << 20, "2 MB"), (512 << 20, "512 MB"), (1 << 35, "32 GB"), (1 << 40, "1 TB")],
)
@pytest.mark.parametrize("cpus", [1, 2, 300])
def test_dmidecode_reads_it(tmp_path, memory, size, cpus):
    data = structures(memory, cpus)
    found = decoded(tmp_path, smbios.entry_point(0, data), data)
    assert list(found) == [0, 1, 4, 16, 17, 32, 127]
    assert (found[0]["Vendor"], found[0]["Version"]) == ("kvmsr", __version__)
    assert "\t\tSystem is a virtual machine" in found[0]["lines"]
    assert (found[1]["Manufacturer"], found[1]["Product Name"]) == ("kvmsr", "machine")
    assert found[4]["Manufacturer"] == "GenuineIntel"
    assert found[4]["Version"] == "A quick CPU"
    assert found[4]["ID"] == "F8 06 08 00 FF FB 8B 0F"
    assert {found[4][f"{what} Count"] for what in ("Core", "Thread")} == {str(cpus)}
    assert ("\t\tMulti-Core" in found[4]["lines"]) == (cpus > 1)
    assert (found[16]["Maximum Capacity"], found[17]["Size"]) == (size, size)
    assert found[17]["Array Handle"] == "0x1000"
    assert found[32]["Status"] == "No errors detected"


@pytest.mark.peer
def test_seabios_takes_it_and_adds_a_structure_about_itself(seabios, tmp_path):
    found = []

    def look(sent):
        """Read the entry point and the structures, before the reset that clears them."""
        said.extend(sent)
        if not found and said.endswith(b"Booting from Floppy"):
            segment = bytes(machine.vm.memory_at(0xF0000, 0x10000))
            points = [segment[at : at + 24] for at in range(0, 0x10000, 16)]
            point = next(p for p in points if p[:5] == b"_SM3_" and sum(p) & 0xFF == 0)
            size, address = struct.unpack_from("<IQ", point, 12)
            found.extend((point, bytes(machine.vm.memory_at(address, size))))

    said = bytearray()
    with Machine(backend.open("soft"), memory="64M", output=look) as machine:
        machine.load(Boot(bios=seabios / "bios.bin"))
        machine.run(60)
    found = decoded(tmp_path, *found)
    assert sorted(found) == [0, 1, 4, 16, 17, 32, 127]
    assert found[0]["Vendor"] == "SeaBIOS"
    assert (found[1]["Manufacturer"], found[17]["Size"]) == ("kvmsr", "64 MB")
