"""
Debian's kernel in QEMU under ``kvmsr exec``, in the nested machine.

Its KVM is that of Linux 6.1, and runs ordinary guests, which not every host's does. Run there as a
program, this prints what the guest printed and kvmsr's summary. Then it boots a guest again, with a
trace, and once more under the policy learned from that, and prints both traces.
"""

import os
import re
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

from kvmsr.trace.learn import learn
from tests.attach.qmp import Monitor
from tests.command import call, words_of
from tests.nested.archive import Archive
from tests.nested.machine import Done, NestedError, run
from tests.nested.parts import find_kernel, find_qemu, project_files

__all__ = ("END", "LINUX", "ONCE", "boot")

POLICY = """
[policy]
extends = ["preset:linux"]

[[rule]]
msr = 0x35
read = { value = 0x20004 }
write = "fault"

[[rule]]
msr = 0x1b0
read = "shadow"
write = "shadow"
reset = 6

[[rule]]
msr = 0x34 # KVM knows it
read = { python = "handler:number" }
"""
HANDLER = "def number(access): return 0x1122334455667788"
ONCE = "no-snapshot"
GUEST = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox insmod /msr.ko
for what in 'rdmsr 0x35' 'wrmsr 0x35 1' 'rdmsr 0x34' 'rdmsr 0x1b0' 'wrmsr 0x1b0 0x77'; do
    /work $what
done
echo ready
case $(/bin/busybox cat /proc/cmdline) in *{ONCE}*) /bin/busybox reboot -f ;; esac
read line
/work rdmsr 0x1b0
/work wrmsr 0x1b0 0x88
echo changed
read line
"""
END = "-- a trace"
FOLDER = Path("/upstream")
SECONDS = 240  # more than any wait in the machine
LINUX = "console=ttyS0 quiet panic=-1 nokaslr tsc=reliable mitigations=off random.trust_cpu=on"


def boot(folder: Path, work: Path, busybox: Path) -> Done:
    """
    Boot the nested machine, and Debian's kernel in it.

    :param folder: for files.
    :param work: the program of tests/e2e/userspace.
    """
    kernel = find_kernel()
    archive = Archive()
    archive.copy(busybox, Path("/bin/busybox"))
    archive.copy(work, Path("/work"))
    for name, data in kernel.module_and_needs("msr").items():
        archive.add(Path(f"/{name}.ko"), data)
    archive.add(Path("/init"), GUEST.encode(), executable=True)
    (folder / "initrd").write_bytes(archive.finish())
    program, libraries, data = qemu_parts()
    files = [kernel.image, folder / "initrd", program, *libraries, *data]
    words = [
        ":".join(sorted({str(path.parent) for path in libraries})), program,
        *[word for path in data for word in ("-L", path.parent)],
        "-kernel", kernel.image, "-initrd", folder / "initrd",
    ]  # fmt: skip
    arguments = ["-m", "tests.attach.upstream", *map(str, words)]
    files += project_files()
    try:
        return run(arguments, files=files, seconds=SECONDS)
    except NestedError:
        # Seen once: the machine was asleep for good, and even the waits in it that have limits did
        # not end. So it was the machine's own clock that had stopped.
        return run(arguments, files=files, seconds=SECONDS)


def qemu_parts():
    """Return QEMU's program, the libraries that it needs, and its firmware."""
    words = find_qemu()
    program = next(Path(word) for word in words if Path(word).name == "qemu-system-x86_64")
    setting = [word.split("=", 1) for word in words if word.startswith("LD_LIBRARY_PATH=")]
    known = subprocess.run(
        ["ldd", program], capture_output=True, text=True, check=True,
        env=os.environ | dict(setting),
    ).stdout  # fmt: skip
    libraries = [Path(path) for path in re.findall(r"^\s+\S+ => (/\S+) \(", known, re.MULTILINE)]
    folders = [program.parents[1] / "share" / name for name in ("qemu", "seabios")]
    wanted = ("bios-microvm.bin", "linuxboot_dma.bin", "kvmvapic.bin")
    return (
        program,
        libraries,
        [path for folder in folders for path in map(folder.joinpath, wanted) if path.exists()],
    )


class Guest:
    """The guest's serial line, and what came over it."""

    def __init__(self, path):
        self.text = ""
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(path)
        self.line.settimeout(120)

    def wait_for(self, word, count=1):
        while self.text.count(f"{word}\r\n") < count:
            data = self.line.recv(4096)
            assert data, self.text
            self.text += data.decode(errors="replace")

    def enter(self):
        self.line.send(b"\n")


def inside(libraries, *words):
    """Run QEMU twice under a policy, and print what came of it."""
    FOLDER.mkdir()
    (FOLDER / "policy.toml").write_text(POLICY)
    (FOLDER / "handler.py").write_text(HANDLER)
    os.environ["LD_LIBRARY_PATH"] += f":{libraries}"
    words = (
        *words, "-accel", "kvm", "-cpu", "host", "-m", "112", "-bios", "bios-microvm.bin",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    )  # fmt: skip
    print(to_a_snapshot_and_back(*words))
    print((FOLDER / "summary").read_text())
    learned = FOLDER / "learned.toml"
    first = traced(FOLDER / "policy.toml", "first", *words)
    learned.write_text(learn([first]).text)  # the command needs a machine's parts
    second = traced(learned, "second", *words)
    for trace in (first, second):
        print(END)
        print(b64encode(trace.read_bytes()).decode())


def to_a_snapshot_and_back(*words):
    """Take a snapshot with the registers, go back to it, and return what the guest printed."""
    serial, monitor = FOLDER / "serial", FOLDER / "qmp"
    process = subprocess.Popen(
        under(
            "--json", "--summary", FOLDER / "summary", "--", *words, "-append", LINUX,
            "-serial", f"unix:{serial},server=on", "-qmp", f"unix:{monitor},server=on,wait=off",
        )
    )  # fmt: skip
    wait_for(serial)
    guest, qmp = Guest(str(serial)), Monitor(monitor)
    qmp.make_disk(FOLDER / "disk")
    snapshot = {"tag": "one", "vmstate": "disk", "devices": ["disk"]}
    guest.wait_for("ready")
    qmp.ask("stop")
    qmp.job("snapshot-save", **snapshot)
    ctl(process, "save")
    qmp.ask("cont")
    guest.enter()
    guest.wait_for("changed")
    qmp.ask("stop")
    qmp.job("snapshot-load", **snapshot)
    ctl(process, "load")
    qmp.ask("cont")
    guest.enter()
    guest.wait_for("changed", 2)
    qmp.ask("quit")
    process.wait(60)
    return guest.text


def traced(policy, name, *words):
    """Record a whole boot under a policy, and return the trace's path."""
    trace = FOLDER / name
    options = "--trace", trace, "--trace-rip", "--summary", FOLDER / "other"
    subprocess.run(
        under(*options, "--", *words, "-append", f"{LINUX} {ONCE}", policy=policy), check=False
    )
    return trace


def under(*words, policy=FOLDER / "policy.toml"):
    return words_of("exec", "--policy", policy, *words)


def ctl(process, word):
    done = call("ctl", process.pid, word, FOLDER / "state")
    assert not done.returncode, done.stderr


def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)


if __name__ == "__main__":
    inside(*sys.argv[1:])
