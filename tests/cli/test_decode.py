"""kvmsr decode and encode, as people type them."""

import json
import os
import pty
import subprocess

import pytest

from tests.command import KVMSR, kvmsr


def test_what_is_0_is_folded_into_one_line():
    out, err = kvmsr("decode", "0x1b", "0xfee00900")
    assert err == ""
    assert out == (
        "IA32_APIC_BASE = 0xfee00900\n"
        "  xAPIC mode: memory at 0xfee00000, bootstrap processor\n"
        "bits   field   value       meaning\n"
        "51:12  base    0xfee00000  physical address of its page\n"
        "11     enable  1           the APIC is on\n"
        "8      bsp     1           the bootstrap processor\n"
        "zero: x2apic\n"
    )
    every, _ = kvmsr("decode", "0x1b", "0xfee00900", "--all")
    assert every.splitlines()[5] == "10     x2apic  0"


def test_bits_that_belong_to_no_field_are_said_once():
    out, _ = kvmsr("decode", "0x3a", "0xc00005", "--cpu", "skylake")
    assert out.splitlines()[-1] == "set, but reserved: 0xc00000 (bits 22, 23)"
    out, _ = kvmsr("decode", "0x1a0", "2", "--cpu", "skylake")
    assert out.splitlines()[-1] == "set, but unknown to the catalog: 0x2 (bit 1)"
    out, _ = kvmsr("decode", "0x10", "5")
    assert out.splitlines()[-1] == "The catalog has no fields for it. Set: bits 0, 2; in decimal 5."


def test_a_terminal_has_set_bits_in_bold_and_what_is_0_dim():
    master, slave = pty.openpty()
    subprocess.run([*KVMSR, "decode", "0x1b", "0xfee00900"], stdout=slave, check=True)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "\x1b[1m11     enable" in shown
    assert "\x1b[2mzero: x2apic" in shown


def test_two_values_are_compared_field_by_field():
    out, _ = kvmsr("decode", "IA32_MTRR_DEF_TYPE", "0xc06", "0x800")
    assert out == (
        "IA32_MTRR_DEF_TYPE: 0xc06 → 0x800\n"
        "bits  field  value  meaning\n"
        "10    fixed  1 → 0  no longer: fixed ranges are enabled\n"
        "7:0   type   6 → 0  WB → UC (default memory type)\n"
    )
    out, _ = kvmsr("decode", "IA32_EFER", "0x901", "0xd01")
    assert "  long mode is enabled, not active: paging is off → long mode is active\n" in out
    assert kvmsr("decode", "0x2ff", "6", "6")[0].endswith("No bit differs.\n")
    out, _ = kvmsr("decode", "0x3a", "5", "0x800005", "--cpu", "skylake")
    assert out.splitlines()[-1] == "differ, but reserved: 0x800000 (bit 23)"
    (told,) = json.loads(kvmsr("decode", "0x2ff", "0xc06", "0xc00", "--json")[0])
    assert told["value"] == {"before": "0xc06", "after": "0xc00"}
    assert told["fields"] == [
        {"name": "type", "bits": "7:0",
         "before": {"value": 6, "meaning": "WB"}, "after": {"value": 0, "meaning": "UC"}},
    ]  # fmt: skip


def test_json_has_quantities_and_what_was_assumed():
    (told,) = json.loads(kvmsr("decode", "0x610", "0x42820800218208", "--json")[0])
    power = next(field for field in told["fields"] if field["name"] == "power1")
    assert power["computed"] == {"value": 65.0, "unit": "W"}
    assert told["assumed"] == {"MSR_RAPL_POWER_UNIT": "0xa0e03"}
    (told,) = json.loads(kvmsr("decode", "0x1b", "0xfee00900", "--json")[0])
    base = next(field for field in told["fields"] if field["name"] == "base")
    assert base["address"] == "0xfee00000"


def test_other_msrs_give_units_and_limits():
    out, _ = kvmsr("decode", "0x611", "0x8000", "--with", "rapl_power_unit=0xa1003")
    assert "500 mJ" in out
    assert "assumed" not in out
    out, _ = kvmsr("decode", "0x611", "0x8000")
    assert out.splitlines()[-1] == (
        "assumed: MSR_RAPL_POWER_UNIT = 0xa0e03 (--with MSR_RAPL_POWER_UNIT=VALUE gives another)"
    )


def test_encode_takes_what_people_write():
    assert kvmsr("encode", "0x1b", "base=0xfee00000", "Enable=true")[0] == "0xfee00800\n"
    assert kvmsr("encode", "0x1a2", "target=85C")[0] == "0x550000\n"
    out, err = kvmsr("encode", "0x610", "power1=15.2W", "enable1=on")
    assert out == "0x807a\n"
    assert err.splitlines() == [
        "note: MSR_PKG_POWER_LIMIT.power1 is 15.25 W, the nearest to 15.2W",
        "note: assumed: MSR_RAPL_POWER_UNIT = 0xa0e03",
    ]
    told = json.loads(kvmsr("encode", "0x199", "ratio=3.25GHz", "--json")[0])
    assert told["value"] == "0x2000"
    assert told["notes"] == ["IA32_PERF_CTL.ratio is 3200 MHz, the nearest to 3.25GHz"]


def test_each_meaning_of_an_msr_is_decoded_with_its_cpus():
    out, _ = kvmsr("decode", "0x1d9", "0x1801")
    headings = [line for line in out.splitlines() if line.startswith("On ")]
    assert headings[:2] == ["On Intel in general:", "On AMD in general:"]
    assert "\nOn zen5..:\n  IA32_DEBUGCTL: lbr, freeze_lbrs_on_pmi, freeze_perfmon_on_pmi\n" in out
    every, _ = kvmsr("decode", "0x1d9", "0x1801", "--all")
    assert every.count(" = 0x1801\n") == len(headings)
    one, _ = kvmsr("decode", "0x1d9", "0x1801", "--cpu", "zen5")
    assert "bus_lock_trap" in one
    assert "On " not in one
    told = json.loads(kvmsr("decode", "0x1d9", "0x1801", "--json")[0])
    assert len(told) == len(headings)
    assert ["zen5.."] in [one["cpus"] for one in told]


def test_encode_wants_to_know_the_cpu_where_that_matters():
    _, err = kvmsr("encode", "0xc0010064", "vid=8", status=2)
    assert err.startswith("kvmsr: 0xc0010064 has several meanings: MSR_AMD_PSTATE_DEF0 on AMD in")
    assert err.endswith("Give --cpu CPU\n")
    assert kvmsr("encode", "0xc0010064", "vid=8", "--cpu", "zen2")[0] == "0x20000\n"
    assert kvmsr("encode", "0x48", "ibrs=on")[0] == "0x1\n"
    assert kvmsr("encode", "0x1d9", "bus_lock_trap=1")[0] == "0x4\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "0x1b", "base=0xfee00010"],
         "IA32_APIC_BASE.base is an address in units of 4 KiB: 0xfee00010 has lower bits"),
        (["decode", "0xc0010015", "0", "--cpu", "intel:06_8F"],
         "MSR_K7_HWCR is not known on intel:06_8F"),
        (["decode", "0x611", "0", "--with", "0x606"], "--with '0x606': write NAME=VALUE"),
        (["decode", "0x611", "0", "--with", "0x606=x"], "'x' is not a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(words, message):
    _, err = kvmsr(*words, status=2)
    assert err.count("\n") == 1
    assert err.startswith(f"kvmsr: {message}")
