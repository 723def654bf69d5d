"""What kvmsr's own machine boots, beside QEMU's TCG: each guest gets as far here as there."""

import gzip
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kvmsr import __version__
from kvmsr.machine import Boot, Machine
from kvmsr.machine.probe import probe
from tests.command import KVMSR, kvmsr, run_guest
from tests.conftest import kvm_missing, need, peer
from tests.e2e.test_userspace import START
from tests.nested.archive import Archive

pytestmark = [pytest.mark.peer, pytest.mark.slow]


@pytest.fixture(params=["soft", "kvm"])
def backend(request):
    """Return the name of each backend that runs ordinary guests."""
    if request.param == "kvm":
        if kvm_missing():
            pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
        if not probe(request.getfixturevalue("host")).ordinary:
            pytest.skip("needs a KVM that runs ordinary guests")
    return request.param


@pytest.fixture
def rom():
    """Return the option ROM that loads Linux images on SeaBIOS."""
    system = Path("/usr/share/qemu/linuxboot_dma.bin")
    return system if system.exists() else peer("qemu", "usr/share/qemu/linuxboot_dma.bin")


def initrd(folder, script, *files):
    """Write an initial RAM disk with busybox, *files* and a *script* to run; return its path."""
    archive = Archive()
    archive.copy(peer("busybox", "**/busybox"), Path("/bin/busybox"))
    for file in files:
        archive.copy(file)
    archive.add(Path("/init"), (START + script).encode(), executable=True)
    (folder / "initrd").write_bytes(archive.finish())
    return folder / "initrd"


TCG = """-nodefaults -accel tcg -m 512 -no-reboot -display none""".split()


def tcg(qemu, *words, timeout=120):
    """Run a guest under QEMU's TCG to its end; return what it sent."""
    done = subprocess.run(
        [*qemu, *TCG, "-serial", "stdio", *map(str, words)],
        capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(errors="replace").replace("\r", "")


def last_message(console):
    """Return the last line of a kernel's log, without its time."""
    return console.splitlines()[-1].partition("] ")[2]


def test_linux_turns_the_machine_off(backend, kernel, qemu, tmp_path):
    disk = initrd(tmp_path, "/bin/busybox poweroff -f\n")
    report, console = run_guest(
        tmp_path, kernel, "--memory", "512M", "--initrd", disk, "--timeout", "100",
        "--append", "console=ttyS0", backend=backend,
    )  # fmt: skip
    assert report["exit"]["kind"] == "poweroff"
    assert report["exit"]["code"] == 0
    assert last_message(console) == "reboot: Power down"
    assert "ACPI: PM: (supports S0 S5)" in console
    theirs = tcg(qemu, "-kernel", kernel, "-initrd", disk, "-append", "console=ttyS0")
    assert last_message(theirs) == last_message(console)


def test_linux_and_dmidecode_find_what_the_machine_is(backend, kernel, tmp_path):
    tool = peer("dmidecode", "usr/sbin/dmidecode")
    needed = subprocess.run([need("ldd"), tool], capture_output=True, text=True, check=True).stdout
    libraries = map(Path, re.findall(r"/\S+\.so\S*", needed))
    script = f"{tool}\n/bin/busybox poweroff -f\n"
    _, console = run_guest(
        tmp_path, kernel, "--memory", "512M", "--cpus", "2", "--timeout", "100",
        "--initrd", initrd(tmp_path, script, tool, *libraries),
        "--append", "console=ttyS0",
        backend=backend,
    )  # fmt: skip
    assert "SMBIOS 3.0.0 present." in console
    assert f"DMI: kvmsr machine, BIOS {__version__} 01/01/2026" in console
    lines = [line.strip() for line in console.splitlines()]
    for expected in (
        "System is a virtual machine",
        "Product Name: machine",
        "Core Count: 2",
        "Maximum Capacity: 512 MB",
        "Size: 512 MB",
        "Status: No errors detected",
    ):
        assert expected in lines


def test_xen_boots_as_far_as_under_qemu(backend, kernel, qemu, start, tmp_path):
    """By multiboot, without a call into a BIOS; Linux in Dom0, which has no console, halts it."""
    image = peer("xen", "boot/xen-4*.gz")
    disk = initrd(tmp_path, "/bin/busybox poweroff -f\n")
    line = "console=com1 com1=115200,8n1 loglvl=all no-real-mode"
    # With SMAP, an IRET in user mode faults in the soft CPU, as it did in QEMU before 9.1.
    report, console = run_guest(
        tmp_path, image, "--memory", "512M", "--timeout", "100", "--cpu-feature", "-smap",
        "--append", line, "--initrd", kernel, "--initrd", disk,
        backend=backend,
    )  # fmt: skip
    last = "(XEN) Hardware Dom0 halted: halting machine"
    assert console.splitlines()[-1] == last
    assert report["exit"]["kind"] == "halt"
    assert "(XEN) SMBIOS 3.0 present." in console
    assert "(XEN)  [0000000000000000, 000000000009fbff] (usable)" in console
    (tmp_path / "xen").write_bytes(gzip.decompress(image.read_bytes()))
    theirs = tmp_path / "theirs"
    sent_until(
        start, last, theirs,
        [*qemu, *TCG, "-serial", f"file:{theirs}", "-kernel", tmp_path / "xen", "-append", line,
         "-initrd", f"{kernel},{disk}"],
    )  # fmt: skip


def sent_until(start, text, serial, command, timeout=100):
    """Run a guest that does not end by itself until it has sent *text*; return what it sent."""
    running = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + timeout
    console = ""
    while text not in console and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        console = serial.read_text(errors="replace") if serial.exists() else ""
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=20)
    assert text in console, said.decode(errors="replace") + console
    return console


def on_the_screen(console):
    """Return the words that a guest has put on a terminal, by the place where they begin."""
    pieces = re.findall(r"\x1b\[(\d+;\d+)H((?:\x1b\[\d*m|[^\x1b])*)", console)
    return {place: re.sub(r"\x1b\[\d*m", "", text).strip() for place, text in pieces}


def memtest(start, backend, bits, serial):
    """Return what memtest86+ has sent when its first screen is complete."""
    words = ["run", "--backend", backend, peer("memtest", f"boot/memtest86+{bits}.bin")]
    words += ["--memory", "512M", "--append", "console=ttyS0,115200", "--serial", serial]
    sent = sent_until(start, LAST_ON_SCREEN, serial, [*KVMSR, *words])
    assert "Memtest86+" in sent
    assert "Status: Testing" in sent
    assert re.search(r"Memory *: +512MB ", sent)
    return sent


LAST_ON_SCREEN = "<ESC> Exit"


def test_memtest86_by_the_64_bit_protocol_reaches_its_testing_screen(backend, start, tmp_path):
    """There is no compressed kernel inside."""
    memtest(start, backend, "x64", tmp_path / "serial")


def test_memtest86_by_the_32_bit_protocol_too_as_under_qemu(backend, qemu, start, tmp_path):
    here = memtest(start, backend, "ia32", tmp_path / "ours")
    image, theirs = peer("memtest", "boot/memtest86+ia32.bin"), tmp_path / "theirs"
    words = ["-serial", f"file:{theirs}", "-kernel", image, "-append", "console=ttyS0,115200"]
    there = sent_until(start, LAST_ON_SCREEN, theirs, [*qemu, *TCG, *words])
    screens = [on_the_screen(sent.partition(LAST_ON_SCREEN)[0]) for sent in (here, there)]
    assert screens[0].keys() == screens[1].keys()


FIRST_PROGRAM = """
.globl _start
_start:
    mov $4, %eax            # write
    mov $1, %ebx
    mov $words, %ecx
    mov $end - words, %edx
    int $0x80
    mov $88, %eax           # reboot
    mov $0xfee1dead, %ebx
    mov $672274793, %ecx
    mov $0x4321fedc, %edx   # power off
    int $0x80
words: .ascii "32-bit code in user space\\n"
end:
"""


def test_a_32_bit_kernel_runs_to_power_off(backend, qemu, tmp_path):
    kernel = os.environ.get("KVMSR_KERNEL_686")
    if not kernel:
        pytest.skip("needs KVMSR_KERNEL_686, the bzImage of Debian's linux-image-686 (i386)")
    source, code, program, disk = (tmp_path / name for name in ("s", "o", "init", "initrd"))
    source.write_text(FIRST_PROGRAM)
    subprocess.run([need("as"), "--32", "-o", code, source], check=True)
    subprocess.run([need("ld"), "-m", "elf_i386", "-o", program, code], check=True)
    archive = Archive()
    archive.copy(program, Path("/init"))
    disk.write_bytes(archive.finish())
    report, console = run_guest(
        tmp_path, kernel, "--memory", "512M", "--initrd", disk, "--timeout", "250",
        "--append", "console=ttyS0", backend=backend,
    )  # fmt: skip
    theirs = tcg(qemu, "-kernel", kernel, "-initrd", disk, "-append", "console=ttyS0")
    for sent in (console, theirs):
        assert "\n32-bit code in user space\n" in sent
        assert last_message(sent) == "reboot: Power down"
    assert report["exit"]["kind"] == "poweroff"


def test_ipxe_runs_on_seabios_as_under_qemu(backend, qemu, seabios, rom, start, tmp_path):
    """An image that starts in real mode, which QEMU's option ROM loads."""
    image = peer("ipxe", "boot/ipxe.lkrn")
    last = "No bootable device."
    report, console = run_guest(
        tmp_path, image, "--bios", seabios / "bios-256k.bin", "--option-rom", rom,
        "--timeout", "100",
        backend=backend,
    )  # fmt: skip
    theirs = tmp_path / "theirs"
    there = sent_until(
        start, last, theirs,
        [*qemu, *TCG, "-serial", f"file:{theirs}", "-machine", "graphics=off", "-kernel", image],
    )  # fmt: skip
    for sent in (console, there.replace("\r", "")):
        _, _, screen = sent.partition("iPXE initialising devices...ok")
        assert "Open Source Network Boot Firmware" in screen
        assert "Press Ctrl-B for the iPXE command line..." in screen
        assert "No more network devices" in screen
        assert last in screen
    assert report["exit"]["kind"] == "reset"


def test_an_image_for_a_bios_says_so_without_one():
    image = peer("ipxe", "boot/ipxe.lkrn")
    _, said = kvmsr("run", image, status=3)
    assert said.count("\n") == 1
    assert f"{image} starts in real mode and needs a BIOS: give SeaBIOS with --bios" in said


@pytest.mark.parametrize("name", ["seabios", "ovmf"])
def test_firmware_starts_linux_which_turns_the_machine_off(
    name, backend, kernel, tmp_path, request
):
    """By the tables that firmware places, with the ports of power management where it puts them."""
    if name == "ovmf":
        firmware = ["--bios", peer("ovmf", "usr/share/ovmf/OVMF.fd")]
    else:
        bios = request.getfixturevalue("seabios") / "bios-256k.bin"
        firmware = ["--bios", bios, "--option-rom", request.getfixturevalue("rom")]
    report, console = run_guest(
        tmp_path, kernel, *firmware, "--memory", "512M", "--timeout", "250",
        "--initrd", initrd(tmp_path, "/bin/busybox poweroff -f\n"), "--append", "console=ttyS0",
        backend=backend,
    )  # fmt: skip
    assert last_message(console) == "reboot: Power down"
    assert report["exit"]["kind"] == "poweroff"
    for table in ("FACP", "DSDT", "FACS", "APIC"):
        assert re.search(rf"ACPI: {table} 0x", console)
    assert "DMI: kvmsr machine, BIOS" in console
    assert ("efi: EFI v2" in console) == (name == "ovmf")


def test_ovmf_reaches_its_shell_as_under_qemu(backend, qemu, start, tmp_path):
    firmware = peer("ovmf", "usr/share/ovmf/OVMF.fd")
    prompt = "Shell> "
    words = ["map -b", "smbiosview -t 1", "reset -s"]
    said = bytearray()

    def answer(sent):
        """Type the next command at each prompt."""
        said.extend(sent)
        if plain(bytes(said[-40:]).decode(errors="replace")).endswith(prompt) and words:
            machine.board.uart.receive(words.pop(0).encode() + b"\r")

    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with Machine(backend, memory="512M", output=answer, disks=[disk]) as machine:
        machine.load(Boot(bios=firmware))
        result = machine.run(250)
    console = plain(said.decode(errors="replace"))
    assert str(result.end.kind) == "poweroff", console
    assert re.search(r"BLK0: .*\s+PciRoot\(0x0\)/Pci\(0x2,0x0\)", console)
    assert "ProductName: machine" in console
    theirs = tmp_path / "theirs"
    there = sent_until(
        start, "Shell> ", theirs, [*qemu, *TCG, "-serial", f"file:{theirs}", "-bios", firmware]
    )
    for line in plain(there).splitlines():
        if line.startswith(("UEFI", "EDK")):
            assert line in console.splitlines()


def plain(text):
    """Return what a terminal shows of *text*, without colours and places."""
    return re.sub(r"\x1b\[[0-9;=]*[A-Za-z]", "", text).replace("\r", "")
