"""Guests that are watched and guests that are not say the same on their serial lines."""

import re

import pytest

from kvmsr import Boot, Machine, Policy, backend
from kvmsr.kvm import Kvm
from kvmsr.msr.as_host import as_host
from kvmsr.policy import Op
from tests.command import call, run_guest
from tests.conftest import GUESTS, kvm_missing
from tests.e2e.test_real_guests import qemu_cpu

LIST = GUESTS / "list.elf"
LONGEST = 3800
DE_CFG, UCODE_REV, TSC, TSC_ADJUST, EFER, APIC_BASE = 0xC0011029, 0x8B, 0x10, 0x3B, 0xC0000080, 0x1B
VARY = (TSC, TSC_ADJUST)
"""TSC_ADJUST says by how much a write moved the TSC."""

VALUES = (0, 1 << 18, 0x0606060606060606)


def words(listed):
    """
    Return accesses to MSRs that KVM handles: a read, and writes each followed by a read.

    :param listed: those that it lists. Of others, the first is enough of those that are alike.
    """
    said = []
    for index in sorted({*listed, *(row.first for row in as_host())}):
        if index in VARY or 0x800 <= index <= 0x8FF or index >> 8 == 0x4B564D:
            continue
        said.append(f"{index:x}")
        for value in () if index in (EFER, APIC_BASE) else VALUES:
            said += [f"{index:x}={value:x}", f"{index:x}"]
    return said


def lines_of(said):
    """Return *said* as lines that are short enough for a guest's command line."""
    lines = [""]
    for word in said:
        if len(lines[-1]) + len(word) > LONGEST:
            lines.append("")
        lines[-1] += f"{word} "
    return lines


def says(open_backend, policy, line):
    """Return what the guest says, and the summary."""
    said = []
    with Machine(open_backend(), policy=policy, output=said.append) as machine:
        machine.load(Boot(LIST, line))
        result = machine.run(60)
    assert result.end.kind == "poweroff"
    return b"".join(said).decode().splitlines(), result.summary


@pytest.fixture(params=["linux-6.18-amd", "linux-6.1-intel", "kvm"])
def kvm_of(request):
    """Return a function that opens a KVM."""
    if request.param != "kvm":
        return lambda: backend.open("soft", profile=request.param)
    if kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return lambda: backend.open("kvm")


def test_a_guest_reads_and_writes_the_same(kvm_of):
    with Kvm(kvm_of()) as kvm:
        listed = {*kvm.get_msr_index_list(), *kvm.get_msr_feature_index_list()}
    seen = 0
    for line in lines_of(words(listed)):
        without, _ = says(kvm_of, Policy(), line)
        within, summary = says(kvm_of, Policy(observe="all"), line)
        assert within == without
        assert len(without) == len(line.split())
        seen += sum(row.count for row in summary if row.rule == "kernel")
    assert seen > 100


def test_what_the_guest_may_write_only_as_a_guest_is_left_with_kvm():
    def soft():
        return backend.open("soft", profile="linux-6.18-amd")

    line = f"{DE_CFG:x} {DE_CFG:x}=2 {DE_CFG:x} {UCODE_REV:x}=7 {UCODE_REV:x}"
    said, summary = says(soft, Policy(observe="all"), line)
    assert said == [
        "rdmsr 0xc0011029 = 0x0000000000000000",
        "wrmsr 0xc0011029 = 0x0000000000000002",
        "rdmsr 0xc0011029 = 0x0000000000000002",
        "wrmsr 0x0000008b = 0x0000000000000007",
        "rdmsr 0x0000008b = 0x0000000001000065",
    ]
    assert {(row.index, row.op) for row in summary} >= {(DE_CFG, Op.READ), (UCODE_REV, Op.READ)}
    assert not any(row.op is Op.WRITE for row in summary)


@pytest.mark.kvm
def test_a_guest_of_qemu_reads_and_writes_the_same(qemu, tmp_path):
    line = "8b 8b=7 8b fe 200 200=6 200 c0000080 174 1a0 35 c0010015=40 c0010015 474f4f00"
    vmm = [
        *qemu, "-nodefaults", "-accel", "kvm", "-cpu", qemu_cpu(qemu), "-m", "64", "-no-reboot",
        "-display", "none", "-serial", "stdio", "-kernel", LIST, "-append", line,
    ]  # fmt: skip
    summary, said = tmp_path / "summary", {}
    for observe in ([], ["--observe", "all"]):
        done = call("exec", "--log", tmp_path / "log", "--summary", summary, *observe, "--", *vmm)
        said[bool(observe)] = [one for one in done.stdout.splitlines() if "msr" in one]
    assert said[True] == said[False]
    assert len(said[True]) == len(line.split())
    table = summary.read_text()
    assert "IA32_EFER" in table
    assert "not under the policy" not in table
    assert "note: not observed, as the guest would notice" in table
    assert "IA32_EFER" in (tmp_path / "log").read_text()


# What is said about time, and what depends on it.
TIMES = (
    (r"^\[ *\d+\.\d+\] ", ""), (r"\d{4}-\d\d-\d\dT[\d:]+ UTC \(\d+\)", "DATE"),
    (r"\b\d+ms\b", "MS"), (r"offset of \d+ cycles", "offset"), (r"(Marking stable) .*", r"\1"),
    (r"\b\d+\.\d+ (MHz|BogoMIPS)", r"\1"), (r"lpj=\d+", "lpj"), (r"max_cycles: .*", "cycles"),
)  # fmt: skip


def without_time(console):
    """
    Return a kernel's lines without times, and without those that come when a thread is ready, or
    when something takes long.
    """
    found = []
    for line in console.splitlines():
        for pattern, replacement in TIMES:
            line = re.sub(pattern, replacement, line)
        if not (line.startswith("audit: type=2000") or re.search(r" took \d+ usecs$", line)):
            found.append(line)
    return found


@pytest.mark.peer
def test_debians_kernel_says_the_same(kernel, tmp_path):
    said, seen = [], []
    for observe in ([], ["--policy", "preset:watch"]):
        report, console = run_guest(
            tmp_path, kernel, *observe, "--memory", "512M", "--timeout", "200",
            "--append", "console=ttyS0 panic=-1", backend="soft",
        )  # fmt: skip
        assert report["exit"]["kind"] == "reset"
        said.append(without_time(console))
        seen.append({access["name"] for access in report["accesses"]})
    assert said[0] == said[1]
    assert "VFS: Unable to mount root fs" in " ".join(said[1])
    assert seen[1] - seen[0] >= {"IA32_EFER", "IA32_LSTAR", "IA32_PAT", "IA32_MTRR_DEF_TYPE"}
    assert seen[0] <= seen[1]
