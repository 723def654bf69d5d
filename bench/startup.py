# SPDX-License-Identifier: Apache-2.0
"""
How long a command takes to start: whole processes, in turns with a Python that does nothing.
Medians, ranges, and the ratio to that Python turn by turn. At last, how long the catalog takes.

    bench/startup.py [ROUNDS]

`python -X importtime -m kvmsr msr 0x35` shows what a command imports, and what that costs.
"""

import statistics
import subprocess
import sys
import time

BASE = "python -c pass"
COMMANDS = (
    "--help", "msr 0x1a0 --json", "msr 0x1c9", "decode 0x1a0 0x850089",
    "encode 0x1b base=0xfee00000", "policy check preset:quiet",
    "run --help", "exec --help",
)  # fmt: skip


LOADING = """
import time, kvmsr.msr
begun = time.perf_counter()
kvmsr.msr.catalog()
print(time.perf_counter() - begun)
"""


def loading() -> float:
    """Return the seconds in which a new process loads the catalog."""
    command = [sys.executable, "-c", LOADING]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    runs = {BASE: [sys.executable, "-c", "pass"]}
    runs |= {
        f"kvmsr {words}": [sys.executable, "-m", "kvmsr", *words.split()] for words in COMMANDS
    }
    for command in runs.values():
        seconds(command)  # warm up
    times = {what: [] for what in runs}
    for _ in range(rounds):
        for what, command in runs.items():
            times[what].append(seconds(command))
    print(f"{rounds} rounds, Python {sys.version.split()[0]}")
    for what, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, times[BASE], strict=True))
        low, middle, high = (1e3 * take(own) for take in (min, statistics.median, max))
        print(f"{what:34} {middle:4.0f} ms ({low:.0f}-{high:.0f})  ratio {ratio:.1f}")
    own = [loading() for _ in range(rounds)]
    low, middle, high = (1e3 * take(own) for take in (min, statistics.median, max))
    print(f"{'loading the catalog':34} {middle:4.0f} ms ({low:.0f}-{high:.0f})")


if __name__ == "__main__":
    main()
