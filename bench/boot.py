# SPDX-License-Identifier: Apache-2.0
"""
How long Debian's kernel takes to boot to its end, on the soft backend and on QEMU's TCG: whole
processes, in turn, with the same kernel and command line. And whether each boot is clean.

    bench/boot.py [ROUNDS]

kvmsr decompresses the kernel itself; under QEMU the guest does.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEERS = Path(__file__).parent.parent / ".peers"
APPEND = "console=ttyS0 panic=-1"
ENDS = "Unable to mount root fs"
# What a sound kernel on a sound machine does not say before its end.
BAD = (
    "WARNING:", "BUG:", "Call Trace", "Oops", "kernel BUG", "Unable to calibrate", "unstable",
    "detected stalls", "self-detected stall", "soft lockup", "blocked for more than",
    "lost interrupt",
)  # fmt: skip
FINE = ("hw-vuln",)  # about the CPU's own faults: the guest has what the host's CPU has


def kernel() -> Path:
    found = sorted(PEERS.glob("kernel/boot/vmlinuz-*"))
    if not found:
        sys.exit("needs Debian's kernel, which tools/fetch_peers.py fetches")
    return found[-1]


def soft(how: str) -> tuple[float, str]:
    """Boot on soft; return the seconds and what the kernel said."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "serial")
        words = ["run", "--backend", "soft", kernel(), "--memory", "512M", "--serial", log]
        words += ["--append", f"{APPEND} {how}", "--log", Path(folder, "log"), "--json"]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "kvmsr", *map(str, words)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        assert json.loads(done.stdout)["exit"]["kind"] == "reset", done.stdout
        return seconds, log.read_text(errors="replace")


def qemu(how: str) -> tuple[float, str]:
    """Boot on QEMU's TCG."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot"]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "-kernel", kernel(), "-append", f"{APPEND} {how}"],
        stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    return time.perf_counter() - begun, done.stdout.decode(errors="replace")


def blemishes(console: str) -> list[str]:
    """Return the lines that a clean boot does not have."""
    before = console.split("Kernel panic")[0]
    found = [
        line.strip()
        for line in before.splitlines()
        if any(word in line for word in BAD) and not any(word in line for word in FINE)
    ]
    return found if ENDS in console else [*found, "it did not come to its end"]


def main() -> None:
    """Boot, compare, and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    has_qemu = shutil.which("qemu-system-x86_64") is not None
    times: dict[tuple[str, str], list[float]] = {}
    unclean = 0
    for number in range(rounds):
        for how in ("acpi=off", ""):
            for name, boot in (("soft", soft), *([("qemu", qemu)] if has_qemu else [])):
                seconds, console = boot(how)
                times.setdefault((name, how), []).append(seconds)
                if name == "soft" and blemishes(console):
                    unclean += 1
                    print(f"boot {number} {how}: {blemishes(console)}")
    for how in ("acpi=off", ""):
        line = [f"{how or 'ACPI':9}"]
        for name in ("soft", "qemu")[: 1 + has_qemu]:
            got = times[name, how]
            line.append(f"{name} {statistics.median(got):.2f} s ({min(got):.2f}-{max(got):.2f})")
        if has_qemu:
            both = zip(times["soft", how], times["qemu", how], strict=True)
            ratios = [a / b for a, b in both]
            low, high = min(ratios), max(ratios)
            line.append(f"ratio {statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})")
        print("  ".join(line))
    print(f"{2 * rounds} boots on soft, {2 * rounds - unclean} of them clean")


if __name__ == "__main__":
    main()
