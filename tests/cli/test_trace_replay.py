"""kvmsr trace replay: the guest gets the answers of an earlier run, wherever it runs now."""

import json

import pytest

from kvmsr.trace.file import Grade
from tests.cli.test_trace_policy import LIST, POLICY, WORDS, record
from tests.command import kvmsr
from tests.conftest import GUESTS, ROOT, kvm_missing
from tests.trace.file.made import events, trace


@pytest.fixture(params=["soft", "kvm"])
def backend(request):
    if request.param == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return request.param


def replay(folder, path, backend, words, *more, status=0):
    """Replay a trace; return what the guest said, the output and the errors."""
    serial = folder / "replayed"
    output, errors = kvmsr(
        "trace", "replay", path, LIST, "--backend", backend, "--append", words,
        "--serial", serial, *more, status=status,
    )  # fmt: skip
    return serial.read_text(), output, errors


def test_the_guest_sees_what_was_recorded(tmp_path, backend):
    """Even a counter's values are those of the first run. The trace is of the other backend."""
    path = record(tmp_path, "soft")
    said, output, errors = replay(tmp_path, path, backend, WORDS)
    assert said == (tmp_path / "serial").read_text()
    assert said.count("0x0000000000000611") == 0
    assert said.count("rdmsr 0x00000611 = ") == 5
    assert f"note: replayed 16 accesses of {path}: 0 divergences\n" in output
    assert errors == ""


def test_the_guest_sees_the_features_that_it_saw(tmp_path):
    """Those whose MSRs the policy answered then, and no others that the recorded accesses allow."""
    path = tmp_path / "trace"
    kvmsr(
        "run", LIST, "--backend", "soft", "--append", "e7 e8 c0010299 c001029b", "--serial",
        tmp_path / "serial", "--policy", "preset:power-meter", "--trace", path, "--cpu-feature",
        "-aperfmperf",
    )  # fmt: skip
    said, output, _ = replay(tmp_path, path, "soft", "e7 e8 c0010299 c001029b")
    assert said == (tmp_path / "serial").read_text()
    assert "note: CPUID shows eff_freq_ro, hw_pstate, rapl, because" in output


def test_divergences_are_shown_and_counted(tmp_path, backend):
    path = record(tmp_path, "soft", "35 1b0=5 1b0 277")
    said, output, errors = replay(tmp_path, path, backend, "35 35 1b0=6 1b0 36", status=6)
    assert said.splitlines() == [
        "rdmsr 0x00000035 = 0x0000000000020004",
        "rdmsr 0x00000035 = 0x0000000000020004",
        "wrmsr 0x000001b0 = 0x0000000000000006",
        "rdmsr 0x000001b0 = 0x0000000000000005",
        "rdmsr 0x00000036 #GP",
    ]
    start = "kvmsr: divergence: vCPU 0: "
    assert errors.splitlines() == [
        f"{start}read 2 of MSR 0x35 (MSR_CORE_THREAD_COUNT): recorded: 1 in all; here: 0x20004",
        f"{start}write 1 of MSR 0x1b0 (IA32_ENERGY_PERF_BIAS): recorded: 0x5, done; here: 0x6,"
        " done",
        f"{start}read 1 of MSR 0x36: recorded: no such access; here: #GP",
    ]
    line = f"replayed 5 accesses of {path}: 3 divergences; 1 recorded access did not happen"
    assert f"note: {line}\n" in output


def test_strict_ends_the_run_there(tmp_path, backend):
    path = record(tmp_path, "soft", "35 1b0=5 1b0")
    said, output, _ = replay(
        tmp_path, path, backend, "35 1b0=6 1b0 35 35", "--strict", "--json", status=6
    )
    report = json.loads(output)
    assert report["exit"]["kind"] == "stop"
    assert report["exit"]["detail"].startswith("the replay diverged: vCPU 0: write 1 of MSR 0x1b0")
    assert report["replay"]["divergences"] == 1
    assert report["replay"]["first"][0]["recorded"] == "0x5, done"
    assert report["replay"]["left"] == 1
    assert "0x000001b0 = 0x0000000000000005" not in said


def test_many_divergences_do_not_fill_the_screen(tmp_path):
    path = record(tmp_path, "soft", "35")
    words = " ".join(["36"] * 50)
    _, output, errors = replay(tmp_path, path, "soft", words, status=6)
    assert errors.count("divergence: ") == 20
    assert errors.endswith("kvmsr: … and 30 more divergences\n")
    assert ": 50 divergences; " in output


def test_several_vcpus(tmp_path, backend):
    policy = tmp_path / "p.toml"
    policy.write_text('[[rule]]\nmsr = 0x474f4f00\nread = "shadow"\nwrite = "shadow"\n')
    path = tmp_path / "trace"
    smp = [GUESTS / "smp.bin", "--mode", "32", "--backend", backend]
    kvmsr("run", *smp, "--cpus", "3", "--policy", policy, "--trace", path, "--lossless", status=1)
    output, _ = kvmsr("trace", "replay", path, *smp, status=1)  # a debug exit with 0
    assert f"replayed 6,000 accesses of {path}: 0 divergences\n" in output


def test_a_run_that_the_policy_stopped_stops_again(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nmsr = 0x36\nread = "stop"\n')
    path = tmp_path / "trace"
    words = ["--backend", "soft", "--append", "35 36 35"]
    kvmsr("run", LIST, *words, "--policy", policy, "--trace", path, status=6)
    output, _ = kvmsr("trace", "replay", path, LIST, *words, status=6)
    assert "stop: the recorded run was stopped at this read of MSR 0x36 on vCPU 0" in output
    assert "0 divergences" in output


def test_bad_input(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, this is not a trace of anything\n")
    trace(tmp_path / "change", events(5), grade=Grade.CHANGE)
    for name, message in (
        ("none", "the trace cannot be read: No such file or directory"),
        ("empty", "the file is empty"),
        ("text", "this is not a trace of kvmsr"),
        ("change", "it was recorded with grade change, so it does not have every answer"),
    ):
        output, errors = kvmsr("trace", "replay", tmp_path / name, LIST, status=3)
        assert output == ""
        assert errors.startswith(f"kvmsr: {tmp_path / name}: {message}")
        assert errors.count("\n") == 1
    path = record(tmp_path, "soft", "35", POLICY)
    _, errors = kvmsr("trace", "replay", path, tmp_path / "none", "--backend", "soft", status=3)
    assert str(tmp_path / "none") in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.peer
def test_debians_kernel_boots_on_recorded_answers(kernel, tmp_path):
    path = tmp_path / "boot.arrows"
    guest = ["--backend", "soft", "--memory", "512M", "--timeout", "200", "--append",
             "console=ttyS0 panic=-1"]  # fmt: skip
    kvmsr("run", kernel, *guest, "--policy", ROOT / "examples/linux.toml", "--trace", path,
          "--log", tmp_path / "log", "--serial", tmp_path / "first", timeout=300)  # fmt: skip
    output, _ = kvmsr(
        "trace", "replay", path, kernel, *guest, "--serial", tmp_path / "second", timeout=300
    )
    assert "0 divergences\n" in output
    console = (tmp_path / "second").read_text(errors="replace")
    assert "VFS: Unable to mount root fs" in console
    assert "TSC doesn't count with P0 frequency" not in console
