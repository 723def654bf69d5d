"""The ACPI tables that a guest finds."""

import struct
import subprocess

import pytest

from kvmsr.machine import acpi
from kvmsr.machine.layout import ACPI_BASE, SMBIOS
from tests.conftest import peer


def table(image, base, address):
    offset = address - base
    (length,) = struct.unpack_from("<I", image, offset + 4)
    data = image[offset : offset + length]
    assert len(data) == length
    return data


def tables(image, base):
    """Return the tables that the RSDP leads to, by their signatures."""
    (xsdt_address,) = struct.unpack_from("<Q", image, 24)
    xsdt = table(image, base, xsdt_address)
    listed = [table(image, base, at) for (at,) in struct.iter_unpack("<Q", xsdt[36:])]
    fadt = next(one for one in listed if one[:4] == b"FACP")
    hung_on = [table(image, base, at) for at in struct.unpack_from("<QQ", fadt, 132)]
    return {one[:4].decode(): one for one in (xsdt, *listed, *hung_on)}


def read_by_reference(iasl, folder, image, base):
    """Return the source that Intel's compiler makes of the DSDT; it must have no complaint."""
    for name, data in tables(image, base).items():
        (folder / f"{name}.dat").write_bytes(data)
        words = [iasl, "-d", f"{name}.dat"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
        said = done.stderr + (folder / f"{name}.dsl").read_text()
        for word in ("Error", "Warning", "Invalid", "Unknown"):
            assert word not in said, said
    source = (folder / "DSDT.dsl").read_text()
    subprocess.run([iasl, "DSDT.dsl"], cwd=folder, capture_output=True, check=True)
    return source


@pytest.mark.parametrize("cpus", [1, 2, 255, 300])
def test_acpi_tables_lead_to_each_other_and_add_up(cpus):
    base = 0xE0000
    image = acpi.build_tables(base, acpi.About(cpus, 1 << 29))
    assert image[:8] == b"RSD PTR "
    assert sum(image[:20]) & 0xFF == 0
    assert sum(image[:36]) & 0xFF == 0
    (xsdt_address,) = struct.unpack_from("<Q", image, 24)
    xsdt = table(image, base, xsdt_address)
    assert xsdt[:4] == b"XSDT"
    fadt, madt = (table(image, base, a) for a in struct.unpack_from("<QQ", xsdt, 36))
    facs, dsdt = (table(image, base, a) for a in struct.unpack_from("<QQ", fadt, 132))
    assert (fadt[:4], madt[:4], facs[:4], dsdt[:4]) == (b"FACP", b"APIC", b"FACS", b"DSDT")
    for one in (xsdt, fadt, madt, dsdt):
        assert sum(one) & 0xFF == 0
    assert struct.unpack_from("<II", fadt, 36) == struct.unpack_from("<QQ", fadt, 132)
    if cpus == 1:  # RSDP, XSDT, FADT, MADT, FACS
        assert 36 + len(xsdt) + len(fadt) + len(madt) + len(facs) == 518
    kinds, at = [], 44
    while at < len(madt):
        kinds.append(madt[at])
        at += madt[at + 1]
    assert at == len(madt)
    assert kinds.count(0) + kinds.count(9) == cpus
    assert kinds.count(1) == 1


@pytest.mark.peer
def test_the_reference_tools_read_the_tables(tmp_path):
    iasl, base = peer("acpica", "usr/bin/iasl"), 0xE0000
    image = acpi.build_tables(base, acpi.About(2, 1 << 29))
    source = read_by_reference(iasl, tmp_path, image, base)
    assert "Name (\\_S5, Package (0x04)" in source
    assert "_PSS" not in source


@pytest.mark.peer
def test_the_reference_tools_read_p_states(tmp_path):
    iasl, base = peer("acpica", "usr/bin/iasl"), 0xE0000
    image = acpi.build_tables(base, acpi.About(2, 1 << 29, mhz=[3000, 1500]))
    source = read_by_reference(iasl, tmp_path, image, base)
    for piece in (
        "Device (C000)", "Device (C001)", '"ACPI0007" /* Processor Device */',
        "Register (FFixedHW,", "Return (PSS)", "Return (PCT)", "0x00000BB8", "0x000005DC",
    ):  # fmt: skip
        assert piece in source


def test_as_many_p_states_as_there_can_be_fit_below_smbios():
    about = acpi.About(1024, 1 << 29, mhz=[3000] * 8)
    assert len(acpi.build_tables(ACPI_BASE, about)) < SMBIOS - ACPI_BASE
