"""QEMU under ``kvmsr exec``, with guests that print which MSRs they saw."""

import json
import struct
import subprocess
import time
from contextlib import suppress

from tests.attach.qmp import Monitor
from tests.command import words_of
from tests.conftest import GUESTS

LIST = GUESTS / "list.elf"
POLICY = """
[[rule]]
msr = 0x35
read = { value = 0x20004 }

[[rule]]
msr = 0x1b0
read = "shadow"
write = "shadow"
reset = 6

[[rule]]
msr = 0x277 # KVM knows it
read = { python = "slow:short" }
write = "fault"

[[rule]]
msr = 0x36
read = { python = "slow:long" }
"""
SLOW = """
import time
from pathlib import Path

def short(access):
    time.sleep(0.02)
    return 0x1122334455667788

def long(access):
    with Path(__file__).with_name("asked").open("a") as file:
        file.write("x")
    time.sleep(1.2)
    return 0x99
"""
# What the guest is to access, and what it then prints.
WORDS = "35 35=1 1b0 1b0=55 1b0 277 277=1 c0000080 36 474f4f00"
SEEN = """\
rdmsr 0x00000035 = 0x0000000000020004
wrmsr 0x00000035 = 0x0000000000000001 #GP
rdmsr 0x000001b0 = 0x0000000000000006
wrmsr 0x000001b0 = 0x0000000000000055
rdmsr 0x000001b0 = 0x0000000000000055
rdmsr 0x00000277 = 0x1122334455667788
wrmsr 0x00000277 = 0x0000000000000001 #GP
rdmsr 0xc0000080 = 0x0000000000000500
rdmsr 0x00000036 = 0x0000000000000099
rdmsr 0x474f4f00 #GP""".splitlines()
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def under(folder, *vmm, policy=POLICY, options=()):
    """Return the words that run a VMM under a policy, with its summary in *folder*."""
    (folder / "slow.py").write_text(SLOW)
    (folder / "policy.toml").write_text(policy)
    return words_of(
        "exec", "--policy", folder / "policy.toml", "--json", "--summary",
        folder / "summary.json", *options, "--", *vmm,
    )  # fmt: skip


def guest(qemu, folder, *options, machine="pc", bios="bios-microvm.bin", image=LIST, words=WORDS):
    """
    Return the words that start QEMU with a multiboot guest and a monitor.

    SeaBIOS for microvm also boots a pc. It looks for no devices, so it does not take five seconds.
    """
    return [
        *qemu, "-accel", "kvm", "-machine", machine, "-bios", bios, "-m", "64",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{folder}/serial",
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off", "-kernel", image, "-append", words,
        *options,
    ]  # fmt: skip


def monitor(folder):
    return Monitor(folder / "qmp")


def lines(folder):
    """Return the whole lines that the guest has printed."""
    with suppress(FileNotFoundError):
        text = (folder / "serial").read_text(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()
    return []


def wait_for_lines(folder, count, process=None, seconds=30):
    """Wait until the guest has printed *count* lines, and return all that it printed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = lines(folder)
        if len(text) >= count:
            return text
        assert process is None or process.poll() is None, text
        time.sleep(0.02)
    raise AssertionError(f"not {count} lines: {lines(folder)}")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def run(folder, *vmm, policy=POLICY, seconds=60, **options):
    """Run a VMM under a policy to its end; return its process and the summary."""
    done = subprocess.run(
        under(folder, *vmm, policy=policy), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=seconds, **options,
    )  # fmt: skip
    return done, summary(folder)


def multiboot(flat, address=0x100000):
    """Return a multiboot image that loads flat 32-bit code at *address* and starts it."""
    size = 48
    magic, flags = 0x1BADB002, 1 << 16  # the addresses are in this header, not in an ELF header
    start, end = address - size, address + len(flat)
    header = struct.pack(
        "<8I", magic, flags, -(magic + flags) % 2**32, start, start, end, end, address
    )
    return header.ljust(size, b"\0") + flat
