"""Real guests: Debian's kernel, SeaBIOS, and other people's tests, with QEMU beside us."""

import json
import os
import re
import struct
import subprocess
import time
from pathlib import Path

import pytest

from kvmsr.decompress import decompress
from kvmsr.machine.probe import probe
from tests.command import KVMSR, call, run_guest
from tests.conftest import GUESTS, ROOT

pytestmark = pytest.mark.peer

# Keeps a kernel off what a KVM that emulates may lack; harmless elsewhere.
LIMITED = "clearcpuid=smap,smep,cx16,xsaveopt noxsave nosmap nosmep nopti mitigations=off"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["acpi=off", ""])
def test_debians_kernel_boots_to_its_end_on_the_soft_backend(kernel, tmp_path, how):
    """With the 8259s and the 8254, and with ACPI, local APIC, I/O APIC and TSC deadline."""
    report, console = run_guest(
        tmp_path, kernel, "--policy", ROOT / "examples/linux.toml", "--memory", "512M",
        "--timeout", "200", "--append", f"console=ttyS0 panic=-1 {how}", "--trace",
        tmp_path / "trace", "--trace-callers", "6", backend="soft",
    )  # fmt: skip
    assert "VFS: Unable to mount root fs" in console
    assert report["exit"]["kind"] == "reset"
    assert ("IOAPIC[0]: apic_id 0" in console) == (how == "")
    assert "TSC deadline timer available" in console
    assert "kernel BUG at" not in console
    assert "Oops" not in console
    assert {access["index"] for access in report["accesses"]} >= {"0x8b", "0xc0010015"}
    # Who asked for the microcode's revision, by the kernel's own names; it has no frame pointers.
    done = call("trace", "show", tmp_path / "trace", "--symbols", kernel, "--msr", "0x8b")
    first, second = (line.partition(" at ")[2] for line in done.stdout.splitlines())
    assert re.match(r"native_read_msr_safe\+0x\d ← early_init_amd\?? ← early_cpu_init", first)
    assert re.match(r"native_read_msr_safe\+0x\d ← early_init_amd\?? ← init_amd ← ", second)
    done = call("trace", "summary", tmp_path / "trace", "--symbols", kernel, "--json")
    rows = json.loads(done.stdout)["traces"][0]["accesses"]
    assert {row["asker"] for row in rows} >= {"early_init_amd", "amd_bus_cpu_online"}


@pytest.mark.parametrize("preset", ["linux", "quiet"])
def test_the_preset_for_linux_spares_it_its_complaints(kernel, tmp_path, preset):
    report, console = run_guest(
        tmp_path, kernel, "--policy", f"preset:{preset}", "--memory", "512M", "--timeout", "200",
        "--append", "console=ttyS0 panic=-1",
        backend="soft",
    )  # fmt: skip
    assert "VFS: Unable to mount root fs" in console
    complains = "[Firmware Bug]: TSC doesn't count with P0 frequency!" in console
    assert complains == (preset == "quiet")
    assert any(a["rule"].startswith("preset:linux:") for a in report["accesses"]) == (not complains)
    lines = (tmp_path / "accesses").read_text().splitlines()
    assert all(line.startswith("vCPU 0: ") for line in lines)


@pytest.mark.slow
@pytest.mark.kvm
def test_debians_kernel_boots_as_far_as_this_kvm_carries_it(kernel, tmp_path, host):
    verdict = probe(host)
    policy = ROOT / "examples/linux.toml"
    report, console = run_guest(
        tmp_path, kernel, "--policy", policy, "--memory", "512M", "--timeout", "280",
        "--append", f"console=ttyS0 panic=-1 {'' if verdict.ordinary else LIMITED}",
    )  # fmt: skip
    assert "Linux version 6.1" in console
    assert "Command line: console=ttyS0" in console
    assert "ACPI: RSDP 0x00000000000E0000" in console
    if verdict.ordinary:
        assert "Unable to mount root fs" in console
        assert report["exit"]["kind"] == "reset"
    else:
        # Everything up to the instruction that this KVM lacks is there, and the end explains it.
        assert report["exit"]["kind"] == "emulation-failure"
        assert report["exit"]["code"] == 5
        assert re.search(
            r"cannot emulate the instruction at RIP 0xffffffff[0-9a-f]{8} \(64-bit code\): \w+",
            report["exit"]["detail"],
        )
        assert "printk: console [ttyS0] enabled" in console
    assert report["accesses"]
    for access in report["accesses"]:
        assert access["name"]
        assert access["first_rip"].startswith("0xffffffff")


@pytest.mark.slow
@pytest.mark.kvm
def test_the_kernel_inside_starts_by_pvh(kernel, tmp_path, start):
    data = kernel.read_bytes()
    setup = (data[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    _, vmlinux = decompress(data[setup + offset : setup + offset + length], 1 << 30)
    (tmp_path / "vmlinux").write_bytes(vmlinux)
    serial = tmp_path / "serial"
    running = start(
        [*KVMSR, "run", "--backend", "kvm", tmp_path / "vmlinux", "--memory", "512M", "--serial",
         serial, "--append", f"console=ttyS0 earlyprintk=ttyS0 panic=-1 {LIMITED}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    console = ""
    for _ in range(1500):  # where KVM emulates the guest it takes its time, and never ends
        console = serial.read_text(errors="replace") if serial.exists() else ""
        if "Hypervisor detected: KVM" in console or running.poll() is not None:
            break
        time.sleep(0.1)
    assert "Linux version 6.1" in console
    assert "Hypervisor detected: KVM" in console


@pytest.mark.kvm
@pytest.mark.parametrize("image", ["bios.bin", "bios-256k.bin"])
def test_seabios_runs_until_it_gives_up_booting(seabios, image, tmp_path):
    report, console = run_guest(tmp_path, "--bios", seabios / image, "--timeout", "60")
    assert console.startswith("SeaBIOS (version")
    assert "Found QEMU fw_cfg" in console
    assert "Found 1 cpu(s) max supported 1 cpu(s)" in console
    assert "No bootable device." in console
    assert report["exit"]["kind"] == "reset"


def qemu_cpu(qemu):
    """Return QEMU's words for "what KVM supports"; it refuses one MSR on some KVMs."""
    for cpu in ("host", "host,-arch-capabilities"):
        command = [
            *qemu,
            "-accel",
            "kvm",
            "-cpu",
            cpu,
            "-display",
            "none",
            "-S",
            "-monitor",
            "stdio",
        ]
        done = subprocess.run(
            command, input="quit\n", capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode == 0:
            return cpu
    pytest.skip(f"needs a QEMU that runs on this KVM: {done.stderr.strip().splitlines()[0]}")


def run_qemu(qemu, image, *words, timeout=120):
    command = [
        *qemu, "-nodefaults", "-accel", "kvm", "-cpu", qemu_cpu(qemu), "-m", "256", "-no-reboot",
        "-display", "none", "-serial", "stdio", "-device", "pc-testdev",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(image), *words,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False
    )
    return done.stdout.decode(errors="replace").replace("\r", "")


@pytest.mark.kvm
def test_without_a_policy_a_guest_sees_what_it_sees_in_qemu(qemu, tmp_path):
    # MSRs of which neither VMM knows more than KVM does.
    words = "277 fe c0000080 174 174=1234 174 1db 474f4f00 474f4f00=1 c0000080=1000000000000 1ad"
    _, ours = run_guest(tmp_path, GUESTS / "list.elf", "--append", words)
    theirs = run_qemu(qemu, GUESTS / "list.elf", "-append", words)
    assert ours.splitlines() == theirs.splitlines()
    assert len(ours.splitlines()) == 11


# Images that need no device but those of our board, and come to their end on every KVM we know.
UNIT_TESTS = """
    msr setjmp realmode smptest idt_test ioapic umip la57 lam tsc_adjust rmap_chain cet pks dummy
    syscall tsx-ctrl tsc svm vmx hyperv_clock
""".split()


def verdicts(text):
    return [line for line in text.splitlines() if re.match(r"(PASS|FAIL|SKIP|XFAIL)\b", line)]


@pytest.mark.slow
@pytest.mark.kvm
@pytest.mark.parametrize("name", UNIT_TESTS)
def test_kvm_unit_tests_pass_and_fail_as_under_qemu(name, qemu, tmp_path):
    folder = os.environ.get("KVM_UNIT_TESTS")
    if not folder:
        pytest.skip("needs KVM_UNIT_TESTS, the folder with the images of kvm-unit-tests")
    image = Path(folder) / f"{name}.flat"
    if not image.exists():
        pytest.skip(f"needs {image}")
    theirs = verdicts(run_qemu(qemu, image))
    _, console = run_guest(tmp_path, image, "--timeout", "100")
    assert verdicts(console) == theirs
