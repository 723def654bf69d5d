"""Disks and consoles: Debian's kernel with a root file system of its own, and SeaBIOS."""

import hashlib
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.command import kvmsr, run_guest, words_of
from tests.conftest import peer
from tests.nested.archive import Archive
from tests.nested.parts import Kernel

pytestmark = pytest.mark.peer

# The initial RAM disk only finds the root; what is to be done there is on the root.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
for module in {modules}; do /bin/busybox insmod /$module.ko; done
/bin/busybox mount -t ext4 -o {options} /dev/vda /root
/bin/busybox mount --move /dev /root/dev
/bin/busybox mount --move /proc /root/proc
/bin/busybox mount --move /sys /root/sys
exec /bin/busybox switch_root /root /work.sh
"""
WORK = """#!/bin/busybox sh
exec </dev/console >/dev/console 2>&1
PATH=/bin
{script}
busybox mount -o remount,ro /
busybox reboot -f
"""
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_console")
BIG = random.Random(1).randbytes(6 << 20)


def mke2fs():
    """Return the path of mke2fs, or skip the test by its name."""
    found = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip("needs mke2fs")
    return found


@pytest.fixture
def boots(kernel, tmp_path):
    """Return a function that returns how to run a script on a root of its own."""
    modules = Kernel(kernel, kernel.parent.parent / "lib/modules")
    busybox = peer("busybox", "**/busybox")
    if not list(modules.modules.rglob("virtio_blk.ko*")):
        pytest.skip("needs kernel, which tools/fetch_peers.py fetches")
    image = tmp_path / "root.img"

    def make_root(script):
        root = tmp_path / "root"
        for folder in ("bin", "dev", "proc", "sys", "mnt"):
            (root / folder).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        (root / "big").write_bytes(BIG)
        (root / "work.sh").write_text(WORK.format(script=script))
        (root / "work.sh").chmod(0o755)
        words = [mke2fs(), "-q", "-t", "ext4", "-d", root, image, "16M"]
        subprocess.run(words, check=True, capture_output=True)

    def words(script, *options, mount="rw", append=""):
        if not image.exists():
            make_root(script)
        archive, initrd = Archive(), tmp_path / "initrd"
        archive.copy(busybox, Path("/bin/busybox"))
        known = {}
        for driver in DRIVERS:
            known |= modules.module_and_needs(driver)
        for name, data in known.items():
            archive.add(Path(f"/{name}.ko"), data)
        init = INIT.format(modules=" ".join(known), options=mount)
        archive.add(Path("/init"), init.encode(), executable=True)
        initrd.write_bytes(archive.finish())
        return [
            kernel, "--memory", "256M", "--initrd", initrd, "--append",
            f"console=ttyS0 panic=-1 {append}", "--timeout", "200", *options,
        ]  # fmt: skip

    words.image = image
    return words


WRITES = """
busybox md5sum /big
busybox cat /sys/block/vda/ro /sys/block/vda/serial /sys/block/vdb/ro /sys/block/vdb/size
busybox cat /kept
echo kept >/kept && busybox sync
echo "to the other" | busybox dd of=/dev/vdb bs=512 seek=3 conv=sync,fsync 2>/dev/null
busybox dd if=/dev/vdb bs=512 skip=3 count=1 2>/dev/null | busybox head -n 1
busybox grep -o 'virtio.-req.*' /proc/interrupts
busybox dmesg | busybox grep pci
"""


@pytest.mark.slow
def test_what_is_written_is_kept_where_that_was_asked_for(boots, tmp_path):
    other = tmp_path / "other.img"
    other.write_bytes(bytes(1 << 20))

    def run(first, second, **options):
        disks = ("--disk", f"{boots.image}{first}", "--disk", f"{other}{second}")
        result, console = run_guest(tmp_path, *boots(WRITES, *disks, **options), backend="soft")
        assert result["exit"]["kind"] == "reset", console[-4000:]
        assert result["notes"] == []
        return console

    console = run(",write", "")
    assert f"{hashlib.md5(BIG).hexdigest()}  /big" in console
    assert re.search(r"^0\nkvmsr-0\n?1\n2048$", console, re.MULTILINE)
    assert "can't open '/kept'" in console
    assert "to the other" not in console
    assert other.read_bytes() == bytes(1 << 20)
    assert "virtio0-req.0" in console
    assert "virtio1-req.0" in console
    # Linux finds the bus, its bridge and what is there, and does not complain.
    assert "pci 0000:00:00.0: [8086:1237]" in console
    assert "pci 0000:00:03.0: [1af4:1042]" in console
    assert not re.search(r"pci.*(can't|fail|invalid|conflict|bug\]|error)", console)

    before = boots.image.read_bytes()
    console = run("", ",write", mount="ro")
    assert re.search(r"^1\nkvmsr-0\n?0\n2048$", console, re.MULTILINE)
    assert "kept\n" in console  # by the first run
    assert "can't create /kept: Read-only file system" in console
    assert "to the other" in console
    assert boots.image.read_bytes() == before
    assert other.read_bytes()[3 * 512 : 4 * 512] == b"to the other\n".ljust(512, b"\0")


TALKS = """
exec </dev/hvc0 >/dev/hvc0 2>&1
echo "what do you say?"
read -r line
echo "you say $line"
busybox seq 1 3000 | busybox tail -n 2000
busybox grep virtio /proc/interrupts
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "append, chip", [("", "PCI-MSI"), ("pci=nomsi", "IO-APIC"), ("acpi=off noapic", "XT-PIC")]
)
def test_a_console_takes_what_is_typed(boots, start, append, chip):
    """Also with interrupts by pin, through the I/O APIC and the 8259s; by two vCPUs."""
    words = boots(TALKS, "--disk", boots.image, "--console", "virtio", mount="ro", append=append)
    command = words_of("run", "--backend", "soft", "--cpus", "2", *words)
    guest = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen = b""
    while b"what do you say?" not in seen:
        seen += (more := os.read(guest.stdout.fileno(), 4096))
        assert more, seen[-4000:]
    with guest.stdin as typed:
        typed.write(b"hello\n")
    console = (seen + guest.stdout.read()).decode().replace("\r", "")
    assert "you say hello\n" in console
    # The kernel's own console is the serial port: what it says may come in the midst of it.
    talk = re.sub(r"\[ *\d+\.\d{6}\] [^\n]*\n", "", console)
    assert "\n".join(map(str, range(1001, 3001))) in talk, console[-40000:]
    assert len(re.findall(rf"^ *\d+:.* {chip} .* virtio", console, re.MULTILINE)) >= 2
    assert "nobody cared" not in console
    assert guest.wait() == 0


class Talk:
    """A guest on whose console one waits for words and types others."""

    def __init__(self, guest):
        self.guest, self.seen = guest, ""

    def until(self, words):
        """Return what the guest says up to and with *words*."""
        while words not in self.seen:
            more = os.read(self.guest.stdout.fileno(), 65536)
            assert more, self.seen[-4000:]
            self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", more.decode(errors="replace"))
        said, _, self.seen = self.seen.partition(words)
        return said + words

    def type(self, line):
        self.guest.stdin.write(f"{line}\n".encode())
        self.guest.stdin.flush()

    def to_the_end(self):
        """Return the rest of what the guest says; kvmsr ends well."""
        said = self.until("MSR accesses")
        with self.guest.stdin, self.guest.stdout:
            self.guest.stdout.read()
        assert self.guest.wait() == 0
        return said


def log_in(start, folder, line, *options):
    """Boot Debian, log in on *line*, and return the session."""
    command = words_of(
        "run", folder / "vmlinuz", "--initrd", folder / "initrd.img", "--memory", "512M",
        "--backend", "soft", "--timeout", "500", *options,
    )  # fmt: skip
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    talk = Talk(start(command, **pipes))
    talk.until(f" kvmsr {line}\n")
    talk.until("login: ")
    talk.type("root")
    talk.until("# ")
    return talk


@pytest.mark.slow
def test_debian_boots_to_its_login(start, tmp_path):
    if "KVMSR_DEBIAN" not in os.environ:
        pytest.skip("needs KVMSR_DEBIAN, a folder that tools/make_debian.sh has filled")
    folder = Path(os.environ["KVMSR_DEBIAN"])
    image = tmp_path / "debian.img"
    subprocess.run(["cp", "--sparse=always", folder / "debian.img", image], check=True)

    def on(mount, disk, line="ttyS0", *options):
        # The driver of hvc0 is a module: without another console there is none at first.
        consoles = " ".join(f"console={each}" for each in dict.fromkeys(("ttyS0", line)))
        words = f"root=/dev/vda {mount} {consoles}"
        return log_in(start, folder, line, "--disk", disk, "--append", words, *options)

    talk = on("rw", f"{image},write")
    talk.type("apt list 2>/dev/null | grep ^bash/")
    assert "bash/" in talk.until("amd64")
    talk.type("echo it is >/root/kept; systemctl poweroff")
    talk.to_the_end()
    talk = on("rw", f"{image},write")
    talk.type("cat /root/kept; systemctl poweroff")
    assert "it is\n" in talk.to_the_end()
    talk = on("ro", image, "hvc0", "--console", "virtio")
    talk.type("cat /root/kept; touch /root/more; systemctl poweroff")
    said = talk.to_the_end()
    assert "it is\n" in said
    assert "Read-only file system" in said


SECTOR = b"".join(b"\xb0%c\xe6\xe9" % byte for byte in b"booted\n") + b"\xb0\x10\xe6\xf4\xf4"


@pytest.mark.parametrize("backend", ["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_seabios_boots_from_a_disk(seabios, tmp_path, backend):
    disk = tmp_path / "disk"
    disk.write_bytes((SECTOR.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    bios = seabios / "bios-256k.bin"
    report, console = run_guest(
        tmp_path, "--bios", bios, "--disk", disk, "--timeout", "60", backend=backend
    )
    assert "pci dev 00:02.0 using modern (1.0) virtio mode" in console
    assert "Booting from Hard Disk...\nBooting from 0000:7c00\nbooted\n" in console
    assert report["exit"]["kind"] == "debug-exit"


def test_disks_that_cannot_be_are_refused_in_one_line(tmp_path):
    odd = tmp_path / "odd.img"
    odd.write_bytes(bytes(1000))
    for file, why in (
        (tmp_path / "none.img", "cannot be opened: No such file or directory"),
        (f"{tmp_path}/none.img,write", "cannot be opened: No such file or directory"),
        (odd, "has 1,000 bytes, not a whole number of 512-byte sectors"),
        (tmp_path, "is neither a file nor a block device"),
    ):
        _, errors = kvmsr("run", "none", "--disk", file, status=3)
        (line,) = errors.splitlines()
        assert why in line
    _, errors = kvmsr("run", "none", "--disk", f"{odd},rw", status=2)
    assert "write FILE, or FILE,write" in errors
