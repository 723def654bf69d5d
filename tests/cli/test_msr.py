"""kvmsr msr, decode and encode."""

import json
import os
import pty
import re
import subprocess
import termios

import pytest

from tests.command import KVMSR, kvmsr


def test_an_msr_is_reported_by_index_and_by_name():
    by_index, _ = kvmsr("msr", "0x3a")
    by_name, _ = kvmsr("msr", "feature_control")
    assert by_index == by_name
    assert "0x3a IA32_FEATURE_CONTROL" in by_index
    assert "14:8  senter_local" in by_index
    report, _ = kvmsr("msr", "0x3a", "--json")
    assert json.loads(report)["fields"][0]["name"] == "lock"


def test_columns_are_broken_where_the_terminal_ends_and_nowhere_else():
    piped, _ = kvmsr("msr", "IA32_PAT")
    assert max(map(len, piped.splitlines())) > 100
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, 60))
    subprocess.run([*KVMSR, "msr", "IA32_PAT"], stdout=slave, check=True)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    _, table = re.sub(r"\x1b\[[0-9]*m", "", shown).split("\r\n\r\n")
    assert all(len(line) <= 60 for line in table.splitlines())
    assert " ".join(table.split()) in " ".join(piped.split())


def test_an_unknown_index_has_a_neighbourhood():
    out, _ = kvmsr("msr", "0x1b3")
    assert "between IA32_PACKAGE_THERM_INTERRUPT (0x1b2) and IA32_XFD (0x1c4)" in out
    report, _ = kvmsr("msr", "0x99999999", "--json")
    assert json.loads(report)["where"] == "in no range that CPUs or hypervisors use"


def test_searching_lists_what_has_all_the_words():
    out, _ = kvmsr("msr", "--search", "thermal status")
    assert "IA32_THERM_STATUS" in out
    assert "IA32_MISC_ENABLE" not in out
    report, _ = kvmsr("msr", "--search", "thermal", "--json")
    assert {"0x19c", "0x1a2", "0x1b1"} <= {row["index"] for row in json.loads(report)}
    out, _ = kvmsr("msr", "--search", "no such thing")
    assert out.startswith("no MSR has 'no such thing'")


def test_values_are_taken_apart_and_put_together():
    out, _ = kvmsr("decode", "0x3a", "0x800005")
    assert "set, but reserved: 0x800000 (bit 23)" in out
    report, _ = kvmsr("decode", "IA32_PAT", "0x0007040600070406", "--json")
    (told,) = json.loads(report)
    assert told["fields"][0] == {"name": "pa0", "bits": "2:0", "value": 6, "meaning": "WB"}
    assert told["summary"] == "WB WT UC- UC WB WT UC- UC (as at reset)"
    assert kvmsr("encode", "IA32_MTRR_DEF_TYPE", "type=WB", "enable=1")[0] == "0x806\n"
    assert kvmsr("encode", "0x2ff", "type=0", "--from", "0x806")[0] == "0x800\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["msr", "IA32_PATT"], 2, "no MSR is called 'IA32_PATT'; did you mean IA32_PAT"),
        (["msr", "0x1ffffffff"], 2, "0x1ffffffff is out of range: MSRs go"),
        (["msr", "0x1g"], 2, "no MSR is called '0x1g'"),
        (["decode", "0x99", "1"], 2, "the catalog has no fields for 0x99 ("),
        (["decode", "0x3a", "x"], 2, "'x' is not a number: write 0x35 or 53"),
        (["encode", "0x3a", "lock"], 2, "'lock' does not set a field: write lock=VALUE"),
        (["encode", "0x3a", "lick=1"], 2, "IA32_FEATURE_CONTROL has no field 'lick'"),
    ],
)
def test_what_cannot_be_is_one_line(words, status, message):
    _, err = kvmsr(*words, status=status)
    assert err.count("\n") == 1
    assert err.startswith(f"kvmsr: {message}")
