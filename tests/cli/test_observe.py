"""--observe: what KVM answers itself, in the table, in the log, as JSON and in a trace."""

import json

import pytest

from kvmsr import Machine, Policy
from kvmsr.machine import MachineDriver
from kvmsr.policy.policy import parse_observe
from kvmsr.session.requests import About, Requests
from kvmsr.session.supervisor import Witness
from tests.command import kvmsr
from tests.conftest import GUESTS

RUN = ["run", GUESTS / "list.elf", "--backend", "soft"]
ACCESSES = ["--append", "c0000080 277 8b=5 8b 174=7"]


def test_table_and_log_show_what_kvm_answers(tmp_path):
    out, _ = kvmsr(*RUN, *ACCESSES, "--observe", "IA32_EFER,0x8b, 0x170-0x17f", "--log",
                   tmp_path / "log", "--serial", tmp_path / "serial")  # fmt: skip
    assert "3 reads, 0 writes, 0 faults" in out  # one of EFER is from the guest's start
    assert "note: not observed: writes of 0x8b (IA32_BIOS_SIGN_ID): the register changes" in out
    assert "IA32_PAT" not in out
    assert (tmp_path / "log").read_text().splitlines() == [
        "vCPU 0: read of MSR 0xc0000080 (IA32_EFER): 0x0 (kernel; filter)",
        "vCPU 0: read of MSR 0x8b (IA32_BIOS_SIGN_ID): 0x1000065 (kernel; filter)",
    ]
    assert (tmp_path / "serial").read_text().splitlines()[2:] == [
        "wrmsr 0x0000008b = 0x0000000000000005",
        "rdmsr 0x0000008b = 0x0000000001000065",
        "wrmsr 0x00000174 = 0x0000000000000007",
    ]


def test_json_and_trace_say_what_is_not_observed(tmp_path):
    trace = tmp_path / "trace.arrows"
    out, _ = kvmsr(*RUN, *ACCESSES, "--policy", "preset:watch", "--json", "--trace", trace,
                   "--serial", tmp_path / "serial", "--log", tmp_path / "log")  # fmt: skip
    report = json.loads(out)
    assert {(row["name"], row["rule"]) for row in report["accesses"]} == {
        ("IA32_EFER", "kernel"), ("IA32_PAT", "kernel"), ("IA32_BIOS_SIGN_ID", "kernel"),
    }  # fmt: skip
    left = report["not_observed"]
    assert all(one["why"] for one in left)
    assert any(one["op"] == "write" and "0x8b" in one["msrs"] for one in left)
    out, _ = kvmsr("trace", "summary", "--json", trace)
    assert json.loads(out)["traces"][0]["not_observed"] == left
    out, _ = kvmsr("trace", "summary", trace)
    assert "Not observed, and so not in the trace: writes of 0x10, 0x11-0x12," in out
    page = tmp_path / "report.html"
    kvmsr("report", trace, "-o", page)
    assert "Not observed, and so not in the trace: reads of 0x10, 0x11-0x12," in page.read_text()
    learned, _ = kvmsr("trace", "policy", trace)
    assert "Left to KVM, as in the trace: IA32_BIOS_SIGN_ID (0x8b)" in learned
    assert "[[rule]]" not in learned


def test_nothing_is_said_if_nothing_is_to_be_observed(tmp_path):
    out, _ = kvmsr(*RUN, *ACCESSES, "--json", "--serial", tmp_path / "serial")
    report = json.loads(out)
    assert (report["accesses"], report["not_observed"], report["notes"]) == ([], [], [])


@pytest.mark.parametrize(
    ("msrs", "why"),
    [
        ("IA32_EFFER", "no MSR is called 'IA32_EFFER'; did you mean IA32_EFER"),
        ("0x20-0x10", "0x20-0x10 ends before it begins"),
        ("", "'' is not an MSR"),
        ("0x10,,0x11", "'' is not an MSR"),
    ],
)
def test_what_selects_no_msr_is_one_line(msrs, why):
    out, err = kvmsr(*RUN, "--observe", msrs, status=2)
    assert out == ""
    assert err.startswith(f"kvmsr: --observe {msrs}: {why}")
    assert err.count("\n") == 1


def test_explain_and_check_say_what_is_left():
    out, _ = kvmsr("policy", "explain", "0x8b", "--write", "1", "--observe", "all")
    assert "Not observed: if KVM is asked as the host, the register changes" in out
    out, _ = kvmsr("policy", "explain", "0x8b", "--policy", "preset:watch")
    assert "comes to user space (filter): the guest sees KVM's answer, by KVM_GET_MSRS" in out
    out, _ = kvmsr("policy", "check", "preset:watch")
    assert out.startswith("note: preset:watch: not observed, as the guest would notice: reads of")


def test_it_outlasts_the_policy_that_is_replaced(tmp_path):
    (tmp_path / "quiet.toml").write_text('[defaults]\nunknown = "ignore"\n')
    observe = parse_observe(0x277)
    with Machine("soft", policy=Policy().observing(observe)) as machine:
        requests = Requests(MachineDriver(machine, ""), About("run", ""), Witness(), observe)
        requests.replace(str(tmp_path / "quiet.toml"))
        assert requests.policy.observe == observe
        assert "\nobserve = 0x277\n" in requests.handle({"do": "show"})["toml"]
        requests.handle({"do": "undo"})
        assert requests.policy.observe == observe
