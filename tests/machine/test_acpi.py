"""The ACPI tables that a guest finds."""

import struct

import pytest

from kvmsr.machine import acpi


def table(image, base, address):
    offset = address - base
    (length,) = struct.unpack_from("<I", image, offset + 4)
    data = image[offset : offset + length]
    assert len(data) == length
    return data


@pytest.mark.parametrize("cpus", [1, 2, 255, 300])
def test_acpi_tables_lead_to_each_other_and_add_up(cpus):
    base = 0xE0000
    image = acpi.build_tables(base, cpus)
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
