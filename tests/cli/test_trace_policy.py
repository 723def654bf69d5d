"""kvmsr trace policy, from the trace of a guest to the guest under what was learned."""

import subprocess

import pytest

from kvmsr.policy import Counter, Rule
from kvmsr.policy.file import load_policy
from kvmsr.trace.file import Grade
from tests.attach.qemu import guest, lines, run, under
from tests.command import kvmsr
from tests.conftest import GUESTS, ROOT, kvm_missing
from tests.trace.file.made import events, trace

LIST = GUESTS / "list.elf"
UNKNOWN = 0x474F4F00
POLICY = """
[[rule]]
msr = 0x35
read = { value = 0x20004 }
write = "fault"
[[rule]]
msr = "IA32_ENERGY_PERF_BIAS"
read = "shadow"
write = "shadow"
reset = 6
bits = { "0-3" = "rw", "*" = "fault" }
[[rule]]
msr = "IA32_PAT"
read = "shadow"
write = "shadow"
[[rule]]
msr = "MSR_PKG_ENERGY_STATUS"
read = { counter = 1_000_000 }
"""
WORDS = "35 35=1 1b0 1b0=f 1b0 1b0=10 1b0 277=6 277 611 611 611 611 611 474f4f00 474f4f00=3"


@pytest.fixture(params=["soft", "kvm"])
def backend(request):
    if request.param == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return request.param


def record(folder, backend, words=WORDS, policy=POLICY, *more):
    """Run a guest, and return its trace."""
    (folder / "policy.toml").write_text(policy)
    path = folder / "trace.arrows"
    kvmsr(
        "run", LIST, "--backend", backend, "--append", words, "--policy", folder / "policy.toml",
        "--trace", path, "--lossless", "--serial", folder / "serial", *more,
    )  # fmt: skip
    return path


def test_what_a_guest_saw_becomes_a_policy(tmp_path, backend):
    path = record(tmp_path, backend, WORDS, POLICY, "--trace-rip")
    text, errors = kvmsr("trace", "policy", path)
    assert errors == ""
    (tmp_path / "learned.toml").write_text(text)
    kvmsr("policy", "check", "--strict", tmp_path / "learned.toml")
    core, bias, pat, energy, unknown = load_policy(tmp_path / "learned.toml").rules
    assert core == Rule(0x35, 0x20004, "fault")
    assert bias == Rule(0x1B0, "shadow", "shadow", reset=6, bits={"0-3": "rw", "*": "fault"})
    assert pat == Rule(0x277, "shadow", "shadow")
    assert isinstance(energy.read, Counter)
    assert 500_000 < energy.read.hz < 2_000_000
    assert unknown == Rule(UNKNOWN, "fault", "fault")
    assert (
        "# MSR_CORE_THREAD_COUNT (0x35): 1 read (0x20004), 1 write (0x1), 1 faulted, by 0x1" in text
    )
    assert 'msr = "IA32_ENERGY_PERF_BIAS"\n' in text


@pytest.mark.parametrize(
    "backend",
    [
        "soft",
        pytest.param("kvm", marks=pytest.mark.kvm),
    ],
)
def test_a_counter_begins_with_the_guest(tmp_path, backend):
    words = " ".join(["611"] * 200)
    (tmp_path / "learned.toml").write_text(
        kvmsr("trace", "policy", record(tmp_path, backend, words))[0]
    )
    (energy,) = load_policy(tmp_path / "learned.toml").rules
    ahead = min(energy.reset, (1 << 64) - energy.reset)
    assert ahead < 50_000  # of a million in a second


def test_the_guest_under_it_sees_the_same(tmp_path, backend):
    path = record(tmp_path, backend)
    output, _ = kvmsr(
        "trace", "policy", path, "-o", tmp_path / "learned.toml", "--verify", LIST,
        "--backend", backend, "--append", WORDS, "--serial", tmp_path / "again",
    )  # fmt: skip
    assert output.endswith(f"verified: 16 of 16 outcomes are as in {path}\n")
    assert "differs" not in output
    before, after = ((tmp_path / name).read_text() for name in ("serial", "again"))
    assert [line for line in before.splitlines() if "611" not in line] == [
        line for line in after.splitlines() if "611" not in line
    ]
    assert load_policy(tmp_path / "learned.toml").rules


def test_differences_are_reported(tmp_path, backend):
    path = record(tmp_path, backend, "35 1b0=5 1b0")
    output, _ = kvmsr(
        "trace", "policy", path, "-o", tmp_path / "learned.toml", "--verify", LIST,
        "--backend", backend, "--append", "35 1b0=6 1b0 36", "--serial", tmp_path / "again",
        status=1,
    )  # fmt: skip
    assert [line for line in output.splitlines() if line.startswith("differs")] == [
        "differs: vCPU 0: read 1 of MSR 0x36: recorded: no such access; here: #GP",
        "differs: vCPU 0: read 1 of MSR 0x1b0 (IA32_ENERGY_PERF_BIAS): recorded: 0x5; here: 0x6",
        "differs: vCPU 0: write 1 of MSR 0x1b0 (IA32_ENERGY_PERF_BIAS): recorded: 0x5, done; here:"
        " 0x6, done",
    ]
    assert output.endswith(f"3 differences from the 3 outcomes in {path}\n")


def test_without_a_file_the_policy_is_all_of_standard_output(tmp_path):
    path = record(tmp_path, "soft", "35")
    text, _ = kvmsr("trace", "policy", path)
    words = ["--verify", LIST, "--backend", "soft", "--append", "35"]
    output, errors = kvmsr("trace", "policy", path, *words)
    assert output == text
    assert "rdmsr 0x00000035 = 0x0000000000020004" in errors
    assert f"verified: 1 of 1 outcome are as in {path}" in errors


def test_several_vcpus(tmp_path, backend):
    """Each has its own register; how many there are comes from the trace."""
    (tmp_path / "p.toml").write_text(
        f'[[rule]]\nmsr = {UNKNOWN}\nread = "shadow"\nwrite = "shadow"\n'
    )
    path = tmp_path / "trace"
    smp = [GUESTS / "smp.bin", "--mode", "32", "--backend", backend]
    words = ["--cpus", "3", "--policy", tmp_path / "p.toml", "--trace", path, "--lossless"]
    kvmsr("run", *smp, *words, status=1)  # a debug exit with 0
    output, _ = kvmsr("trace", "policy", path, "-o", tmp_path / "l.toml", "--verify", *smp)
    assert f"verified: 6,000 of 6,000 outcomes are as in {path}" in output
    assert load_policy(tmp_path / "l.toml").rules == (Rule(UNKNOWN, "shadow", "shadow"),)
    text = (tmp_path / "l.toml").read_text()
    assert "3,000 reads" in text
    assert ", on 3 vCPUs" in text


def test_traces_that_disagree(tmp_path):
    for name, value in (("a", 5), ("b", 6)):
        (tmp_path / name).mkdir()
        record(tmp_path / name, "soft", "35", f"[[rule]]\nmsr = 0x35\nread = {{ value = {value} }}")
    paths = [tmp_path / name / "trace.arrows" for name in "ab"]
    output, errors = kvmsr("trace", "policy", *paths)
    said = " | ".join(
        f"{path}: read = {{ value = {value:#x} }}"
        for path, value in zip(paths, (5, 6), strict=True)
    )
    line = f"MSR_CORE_THREAD_COUNT (0x35): the traces disagree: {said}"
    assert errors == f"kvmsr: note: {line}\n"
    assert f"#   the traces disagree: {said}" in output


def test_bad_input(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, this is not a trace of anything\n")
    trace(tmp_path / "count", events(5), grade=Grade.COUNT)
    for name, message in (
        ("none", "the trace cannot be read: No such file or directory"),
        ("empty", "the file is empty"),
        ("text", "this is not a trace of kvmsr"),
        ("count", "nothing can be learned from a trace of grade count, which has no values"),
    ):
        output, errors = kvmsr("trace", "policy", tmp_path / name, status=3)
        assert output == ""
        assert errors.startswith(f"kvmsr: {tmp_path / name}: {message}")
        assert errors.count("\n") == 1


def test_bad_usage(tmp_path):
    path = record(tmp_path, "soft", "35")
    _, errors = kvmsr("trace", "policy", path, path, "--verify", LIST, status=2)
    assert errors == "kvmsr: --verify compares a run with one trace: give one FILE\n"
    _, errors = kvmsr("trace", "policy", path, "-o", tmp_path / "no" / "x", status=2)
    assert errors.startswith(f"kvmsr: -o {tmp_path / 'no' / 'x'}: cannot be written: No such file")
    _, errors = kvmsr(
        "trace", "policy", path, "--verify", tmp_path / "no", "--append", "x", status=3
    )
    assert "no" in errors
    grade = trace(tmp_path / "once", events(5), grade=Grade.ONCE)
    _, errors = kvmsr("trace", "policy", grade, "--verify", LIST, status=3)
    assert "it was recorded with grade once, so it does not have every answer" in errors


def test_a_trace_that_is_cut(tmp_path):
    path = record(tmp_path, "soft", "35 35")
    path.write_bytes(path.read_bytes()[:-8])
    output, errors = kvmsr("trace", "policy", path)
    assert errors == f"kvmsr: note: {path}: its end is missing; it is used up to there\n"
    assert "value = 0x20004" in output


@pytest.mark.slow
@pytest.mark.peer
def test_debians_kernel_boots_under_what_it_taught(kernel, tmp_path):
    """Every outcome of a whole boot is reproduced, on the soft backend."""
    path = tmp_path / "boot.arrows"
    guest = ["--backend", "soft", "--memory", "512M", "--timeout", "200", "--append",
             "console=ttyS0 panic=-1", "--serial", tmp_path / "serial"]  # fmt: skip
    kvmsr("run", kernel, *guest, "--policy", ROOT / "examples/linux.toml", "--trace", path,
          "--trace-rip", "--log", tmp_path / "log", timeout=300)  # fmt: skip
    learned = tmp_path / "learned.toml"
    output, errors = kvmsr(
        "trace", "policy", path, "-o", learned, "--verify", kernel, *guest, timeout=300
    )
    assert "VFS: Unable to mount root fs" in (tmp_path / "serial").read_text(errors="replace")
    assert "verified: " in output
    assert errors == ""
    assert "0 lints" in kvmsr("policy", "check", "--strict", learned)[0]
    assert 'msr = "MSR_K7_HWCR"\nread = { value = 0x1000000 }' in learned.read_text()


@pytest.mark.peer
@pytest.mark.kvm
def test_what_a_guest_of_qemu_saw(qemu, tmp_path):
    """It sees the same under the learned policy, and in kvmsr's own machine on the answers."""
    vmm = guest(qemu, tmp_path, words=WORDS)
    path = tmp_path / "trace.arrows"
    words = under(tmp_path, *vmm, policy=POLICY, options=["--trace", path, "--lossless"])
    assert subprocess.run(words, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode == 0
    before = lines(tmp_path)
    learned, _ = kvmsr("trace", "policy", path)
    assert "exec" in learned.splitlines()[1]
    assert "reproduces 16 of 16 outcomes" in learned
    assert run(tmp_path, *vmm, policy=learned)[0].returncode == 0
    after = lines(tmp_path)
    assert [line for line in after if "611" not in line] == [
        line for line in before if "611" not in line
    ]
    serial = tmp_path / "replayed"
    output, _ = kvmsr(
        "trace", "replay", path, LIST, "--append", WORDS, "--backend", "kvm", "--serial", serial
    )
    assert "replayed 16 accesses" in output
    assert ": 0 divergences" in output
    assert serial.read_text().splitlines() == before
