"""kvmsr msr, decode and encode."""

import json
import os
import pty
import re
import subprocess
import termios

import pytest

from kvmsr.msr import catalog
from kvmsr.msr.cpu import cpu_sets
from tests.command import KVMSR, kvmsr


def test_an_msr_is_reported_by_index_and_by_name():
    by_index, _ = kvmsr("msr", "0x3a")
    by_name, _ = kvmsr("msr", "feature_control")
    assert by_index == by_name
    assert "0x3a IA32_FEATURE_CONTROL" in by_index
    assert "14:8  senter_local" in by_index
    report, _ = kvmsr("msr", "0x3a", "--json")
    assert json.loads(report)[0]["fields"][0]["name"] == "lock"


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
    (nameless,) = json.loads(report)
    assert (nameless["index"], nameless["name"]) == ("0x99999999", "")
    assert nameless["where"] == "in no range that CPUs or hypervisors use"


def test_several_msrs_are_reported_in_one_command():
    out, _ = kvmsr("msr", "0x1a0", "ia32_pat", "0x1b3")
    assert "0x1a0 IA32_MISC_ENABLE" in out
    assert "0x277 IA32_PAT" in out
    assert "0x1b3 has no name" in out
    report, _ = kvmsr("msr", "0x1a0-0x1a2", "IA32_MC?_CTL2", "416", "0x1b3", "--json")
    found = {row["index"]: row["name"] for row in json.loads(report)}
    assert found["0x1a2"] == "MSR_TEMPERATURE_TARGET"
    assert found["0x281"] == "IA32_MC1_CTL2"
    assert found["0x1b3"] == ""
    assert list(found).count("0x1a0") == 1
    out, _ = kvmsr("msr", "0x1a0-0x1b3")  # a range lists what has a name
    assert "0x1a0  IA32_MISC_ENABLE " in out
    assert "0x1b3" not in out


def test_an_msr_has_the_name_that_it_has_on_a_cpu():
    out, _ = kvmsr("msr", "0x1c9", "--cpu", "zen4")
    assert out.startswith("0x1c9 has no name on zen4; on ")
    assert "MSR_LASTBRANCH_TOS" in out
    report, _ = kvmsr("msr", "0x1c9", "0x10a", "0xc0010015", "--cpu", "amd:19_01", "--json")
    names = [(row["name"], len(row.get("elsewhere", ()))) for row in json.loads(report)]
    assert names == [("", 1), ("", 1), ("MSR_K7_HWCR", 0)]
    out, _ = kvmsr("msr", "0x1c0-0x1c9", "--cpu", "haswell")
    assert "MSR_LASTBRANCH_TOS" in out


def test_all_meanings_of_an_index_are_reported_with_their_cpus():
    index = 0x690
    report, _ = kvmsr("msr", f"{index:#x}", "--json")
    rows = json.loads(report)
    assert [row["name"] for row in rows] == [msr.name for msr in catalog().meanings(index)]
    signatures = [spec for row in rows for spec in row["cpus"]]
    assert all(cpu_sets(spec) for spec in signatures)
    assert not any(".." in spec for spec in signatures)  # a program needs no table of code names
    for row in rows:
        cpu = next((spec for spec in row["cpus"] if re.fullmatch(r"\w+:\w\w_\w\w", spec)), None)
        if cpu:
            there, _ = kvmsr("msr", f"{index:#x}", "--cpu", cpu, "--json")
            assert row["name"] in [one["name"] for one in json.loads(there)]


def test_what_kvm_does_is_said_by_module_and_version():
    out, _ = kvmsr("msr", "0x49")
    assert "kvm handles writes (emulated) since 6.4" in out
    assert "kvm_intel and kvm_amd handle writes (passed through) since 6.4" in out
    assert "No KVM up to Linux 7.1 handles reads: 'unknown'." in out
    out, _ = kvmsr("msr", "0x2a0")
    assert "kvm handles reads and writes (refused) until 6.4" in out
    assert "Later KVMs do not know reads and writes: 'unknown'." in out
    report, _ = kvmsr("msr", "0x198", "--json")
    assert json.loads(report)[0]["kvm"] == {
        "reads": True,
        "writes": False,
        "ways": [
            {
                "by": ["kvm"], "reads": "constant", "writes": "", "value": "0x400000003e8",
                "since": "", "not_in": "", "until": "", "note": "",
            }
        ],
        "about": json.loads(report)[0]["kvm"]["about"],
    }  # fmt: skip


def test_cpus_are_listed():
    out, _ = kvmsr("msr", "--cpus")
    assert re.search(r"^sapphire-rapids +intel:06_8F", out, re.MULTILINE)
    report, _ = kvmsr("msr", "--cpus", "--json")
    assert {"name": "haswell-ep", "cpus": ["intel:06_3F"]} in json.loads(report)


def test_the_best_match_comes_first():
    report, _ = kvmsr("msr", "--search", "pat", "--json")
    assert json.loads(report)[0]["name"] == "IA32_PAT"
    report, _ = kvmsr("msr", "--search", "senter_local", "--json")  # a field
    assert {row["name"] for row in json.loads(report)} == {"IA32_FEATURE_CONTROL"}
    report, _ = kvmsr("msr", "--search", "perf limit haswell", "--json")  # on a CPU
    assert "MSR_CORE_PERF_LIMIT_REASONS" in {row["name"] for row in json.loads(report)}
    report, _ = kvmsr("msr", "--search", "thermal status", "--cpu", "zen4", "--json")
    assert "IA32_THERM_STATUS" not in {row["name"] for row in json.loads(report)}


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
        (["msr", "0x99-0x98"], 2, "0x99-0x98: the range ends before it begins"),
        (["msr", "NO_SUCH_*"], 2, "no MSR has a name like 'NO_SUCH_*'"),
        (["msr", "0x99990000-0x99999999"], 2, "no MSR of 0x99990000-0x99999999 has a name"),
        (["msr", "0x10", "--cpu", "zenn4"], 2, "--cpu zenn4: no CPU is called 'zenn4'; did you"),
        (["msr", "0x10", "--cpu", "intel"], 2, "--cpu intel: 'intel' is more than one CPU"),
        (["decode", "0x77777", "1"], 2, "the catalog has no fields for 0x77777 ("),
        (["decode", "0x3a", "x"], 2, "'x' is not a number: write 0x35 or 53"),
        (["encode", "0x3a", "lock"], 2, "'lock' does not set a field: write lock=VALUE"),
        (["encode", "0x3a", "lick=1"], 2, "IA32_FEATURE_CONTROL has no field 'lick'"),
    ],
)
def test_what_cannot_be_is_one_line(words, status, message):
    _, err = kvmsr(*words, status=status)
    assert err.count("\n") == 1
    assert err.startswith(f"kvmsr: {message}")
