# SPDX-License-Identifier: Apache-2.0
"""
How long Linux takes to boot to its end in user space, on the soft backend compared with QEMU's TCG:
whole processes, in turns, with the same kernel, initial RAM disk and command line, for each kernel
and number of vCPUs. And whether each boot on soft is clean. User space is busybox, which turns the
machine off at once.

    bench/boot.py [--rounds N] [--cpus 1,2,4] [--append WORDS] [KERNEL ...]

KERNEL is a vmlinuz; by default, those of .peers/. What is shown are ratios, in time and in CPU time
(user and system), so they mean something on a busy machine, too. kvmsr decompresses the kernel
itself; under QEMU the guest does. QEMU runs each vCPU in a thread of its own; soft has a thread for
each, too, and one of them executes at a time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from attach import find_qemu
from common import BENCH, PEERS

sys.path.insert(0, str(BENCH.parent))
from tests.nested.archive import Archive

# A busy host may keep QEMU's timer interrupt waiting so long that Linux takes it for broken.
APPEND = "console=ttyS0 panic=-1 no_timer_check"
INIT = b"#!/bin/busybox sh\n/bin/busybox echo in user space\n/bin/busybox poweroff -f\n"
ENDS = ("in user space", "reboot: ")
PATIENCE = 120
TRIES = 3
# What a sound kernel on a sound machine does not say before its end.
BAD = (
    "WARNING:", "BUG:", "Call Trace", "Oops", "kernel BUG", "Unable to calibrate", "unstable",
    "detected stalls", "self-detected stall", "soft lockup", "blocked for more than",
    "lost interrupt", "Kernel panic",
)  # fmt: skip
FINE = ("hw-vuln",)  # about the CPU's own faults: the guest has what the host's CPU has


class Boot(NamedTuple):
    """What a boot took, in seconds, and what it said."""

    wall: float
    cpu: float
    console: str


class NotWell(Exception):
    """A boot failed."""


def kernels() -> list[Path]:
    found = sorted(PEERS.glob("kernel*/**/vmlinuz*"))
    return found or sys.exit("bench: needs a kernel: name one, or run tools/fetch_peers.py .peers")


def initrd(folder: Path) -> Path:
    """Return an initial RAM disk that resets the machine."""
    found = sorted(PEERS.glob("busybox/**/busybox"))
    if not found:
        sys.exit("bench: needs busybox, which tools/fetch_peers.py fetches")
    archive = Archive()
    archive.copy(found[0].resolve(), Path("/bin/busybox"))
    archive.add(Path("/init"), INIT, executable=True)
    archive.device(Path("/dev/console"), 5, 1)
    (folder / "initrd").write_bytes(archive.finish())
    return folder / "initrd"


def timed(words: list[object], console: Path) -> Boot:
    """Run a command that must end well, with its output in *console*."""
    with console.open("wb") as file:
        begun = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, words)),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
    text = console.read_text(errors="replace")
    if status or not all(word in text for word in ENDS):
        raise NotWell(f"{' '.join(map(str, words))} did not end well:\n{text[-2000:]}")
    return Boot(wall, usage.ru_utime + usage.ru_stime, text)


def soft(folder: Path, kernel: Path, cpus: int, append: str) -> Boot:
    words = [sys.executable, "-m", "kvmsr", "run", "--backend", "soft", kernel]
    words += ["--cpus", cpus, "--memory", "512M", "--append", append, "--timeout", PATIENCE]
    return timed([*words, "--initrd", folder / "initrd"], folder / "console")


def qemu(folder: Path, kernel: Path, cpus: int, append: str) -> Boot:
    words = ["timeout", PATIENCE, *find_qemu(), "-accel", "tcg", "-smp", cpus, "-m", "512"]
    words += ["-nographic", "-no-reboot", "-kernel", kernel, "-append", append]
    for _ in range(TRIES):
        try:
            return timed([*words, "-initrd", folder / "initrd"], folder / "console")
        except NotWell as error:  # on a busy host, guests of TCG may hang
            print(f"again: {str(error).splitlines()[0]}", file=sys.stderr)
    return sys.exit("bench: QEMU does not boot this kernel")


def blemishes(console: str) -> list[str]:
    """Return the lines that a clean boot does not have."""
    return [
        line.strip()
        for line in console.splitlines()
        if any(word in line for word in BAD) and not any(word in line for word in FINE)
    ]


def ratio(own: list[float], other: list[float]) -> str:
    found = [mine / theirs for mine, theirs in zip(own, other, strict=True)]
    return f"{statistics.median(found):5.2f} ({min(found):.2f}-{max(found):.2f})"


def compare(run: Callable[[Callable[..., Boot]], Boot], rounds: int) -> tuple[str, list[str]]:
    """Boot in turns; return the ratios, and what was not clean."""
    own: list[Boot] = []
    others: list[Boot] = []
    for number in range(rounds):
        for boot, found in ((soft, own), (qemu, others))[:: -1 if number % 2 else 1]:
            found.append(run(boot))
    times = ratio([one.wall for one in own], [one.wall for one in others])
    cpu = ratio([one.cpu for one in own], [one.cpu for one in others])
    return f"time {times}  CPU {cpu}", [line for one in own for line in blemishes(one.console)]


def main() -> None:
    """Boot, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kernels", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", default="1,2,4")
    parser.add_argument("--append", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        initrd(folder)
        for kernel in options.kernels or kernels():
            for cpus in map(int, options.cpus.split(",")):

                def run(boot: Callable[..., Boot]) -> Boot:
                    return boot(folder, kernel, cpus, f"{APPEND} {options.append}")  # noqa: B023

                ratios, unclean = compare(run, options.rounds)
                print(f"{kernel.name:36} {cpus} vCPUs  soft / TCG: {ratios}", flush=True)
                for line in dict.fromkeys(unclean):
                    print(f"  not clean: {line}")


if __name__ == "__main__":
    main()
