#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
How long `kvmsr trace summary` takes, and its memory at the most: whole processes, in turns with one
that only reads the trace. The traces are made here; their MSRs, values and times are random.

    bench/trace.py [--events 1000000,10000000] [--rounds 5] [--json FILE]

A row of a trace takes about 90 bytes, so 10,000,000 events need 1 GB of disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from common import BENCH, in_turns, ratios

from kvmsr.trace.file import EVENT, LATENCY, Head, TraceWriter
from kvmsr.trace.file.columns import VALUE

PART = 1 << 16
MSRS = 64
RULES = [f"quiet.toml:{line}" for line in range(3, 40, 4)] + ["defaults.unknown"]
READ = """
import sys
from pathlib import Path
from kvmsr.trace.file import Trace
with Trace(Path(sys.argv[1])) as trace:
    print(sum(len(events) for events in trace.batches()))
"""


def some_events(count: int, begin_ns: int, random: np.random.Generator) -> np.ndarray:
    made = np.zeros(count, EVENT)
    made["guest_ns"] = begin_ns + np.cumsum(random.integers(100, 2000, count))
    made["time_ns"] = made["guest_ns"] + np.uint64(1_764_000_000_000_000_000)
    made["index"] = random.integers(0, MSRS, count) * 7 + 0x10
    made["value"] = random.integers(0, 1 << 63, count)
    made["latency_ns"] = random.lognormal(7.5, 0.7, count)
    made["count"], made["pid"], made["has"] = 1, 77, VALUE | LATENCY
    made["vcpu"] = random.integers(0, 4, count)
    made["rule"] = made["index"] % len(RULES)  # as in life: an MSR has its rule
    made["op"] = random.random(count) < 0.2
    made["outcome"] = made["op"]
    return made


def make(path: Path, count: int) -> Path:
    random = np.random.default_rng(1)
    now = 0
    with TraceWriter(path, Head(image="bench", backend="soft")) as writer:
        for first in range(0, count, PART):
            part = some_events(min(PART, count - first), now, random)
            now = int(part["guest_ns"][-1])
            writer.write(part, RULES)
    return path


class Process:
    """Runs a command again and again, and keeps how much memory it took."""

    def __init__(self, *words: object) -> None:
        self.words = [sys.executable, *map(str, words)]
        self.kib = 0

    def __call__(self) -> float:
        """Return its time on the CPU, user and system, in seconds."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        pid = os.posix_spawn(
            sys.executable, self.words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nowhere, 1)]
        )
        os.close(nowhere)
        _, status, usage = os.wait4(pid, 0)
        if status:
            sys.exit(f"bench: {' '.join(self.words)} failed")
        self.kib = max(self.kib, usage.ru_maxrss)
        return usage.ru_utime + usage.ru_stime


def measure(path: Path, count: int, rounds: int) -> dict[str, object]:
    runs: dict[str, Callable[[], float]] = {
        "read": Process("-c", READ, path),
        "summary": Process("-m", "kvmsr", "trace", "summary", path),
        "by vcpu": Process("-m", "kvmsr", "trace", "summary", "--by", "vcpu", path),
    }
    times = in_turns(runs, rounds)
    rows: dict[str, object] = {}
    for what in ("read", "summary", "by vcpu"):
        own, mib = times[what], runs[what].kib / 1024  # type: ignore[attr-defined]
        found = ratios(own, times["read"])
        print(
            f"{count:>12,} {what:8} {statistics.median(own):6.2f} s"
            f" ({min(own):.2f}-{max(own):.2f}), {statistics.median(own) / count * 1e9:4.0f} ns an"
            f" event, {found['ratio_median']} of reading, {mib:.0f} MiB"
        )
        rows[what] = {"seconds": own, "mib": round(mib, 1), **found}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--events", default="1000000,10000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=BENCH / "results/trace.json")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        for count in map(int, options.events.split(",")):
            path = make(Path(name) / "trace", count)
            rows[str(count)] = measure(path, count, options.rounds)
    common.save(options, rows=rows)


if __name__ == "__main__":
    main()
