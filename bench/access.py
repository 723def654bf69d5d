#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Measure what an MSR access costs: answered by kvmsr with a constant, with a Python handler, among
10,000 rules, and without the native core, compared with the least that any VMM can do, a C loop.
All run the same guest on the same KVM, in turns. The result is the ratios, pair by pair, with
medians and ranges: absolute times mean little on a shared machine.

    bench/access.py [--count ACCESSES] [--pairs PAIRS] [--json FILE]
"""

import argparse
import json
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import kvmsr
from kvmsr import Boot, Machine, Policy, Rule, backend

BENCH = Path(__file__).parent
LOOP = Path(kvmsr.__file__).parent / "machine/guests/loop.bin"
COUNT_AT = 4
MSR = 0x35


def build(folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("bench: needs a C compiler and linux/kvm.h")
    program = folder / "minimal"
    subprocess.run([compiler, "-O2", "-Wall", "-o", program, BENCH / "minimal.c"], check=True)
    return program


def image_for(folder: Path, count: int) -> Path:
    data = bytearray(LOOP.read_bytes())
    struct.pack_into("<I", data, COUNT_AT, count)
    image = folder / "loop.bin"
    image.write_bytes(data)
    return image


def in_c(program: Path, image: Path, count: int) -> float:
    done = subprocess.run([program, image, str(count)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def in_kvmsr(rule: Rule, image: Path, count: int, native: bool = True) -> float:
    kvm = backend.open("kvm")
    with Machine(kvm, memory=16 << 20, policy=Policy([rule]), native=native) as machine:
        machine.load(Boot(image, mode=16))
        result = machine.run()
    assert result.summary.totals()["reads"] == count
    return result.wall_s / count * 1e9


def in_kvmsr_with_many(image: Path, count: int) -> float:
    rules = [Rule(0x1000_0000 + 3 * n, read=n) for n in range(10_000)]
    with Machine(
        backend.open("kvm"), memory=16 << 20, policy=Policy([*rules, Rule(MSR, read=0x20004)])
    ) as machine:
        machine.load(Boot(image, mode=16))
        return machine.run().wall_s / count * 1e9


def handler(access: object) -> int:
    return 0x20004


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--json", type=Path, default=BENCH / "results/access.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program, image = build(folder), image_for(folder, options.count)
        runs = {
            "C loop": lambda: in_c(program, image, options.count),
            "kvmsr, in Python": lambda: in_kvmsr(
                Rule(MSR, read=0x20004), image, options.count, native=False
            ),
            "kvmsr, 10,000 rules": lambda: in_kvmsr_with_many(image, options.count),
            "kvmsr, constant": lambda: in_kvmsr(Rule(MSR, read=0x20004), image, options.count),
            "kvmsr, Python handler": lambda: in_kvmsr(
                Rule(MSR, read=handler), image, options.count
            ),
        }
        for run in runs.values():
            run()  # warm up
        times: dict[str, list[float]] = {what: [] for what in runs}
        for pair in range(options.pairs):
            print(f"\r{pair + 1} of {options.pairs}", end="", file=sys.stderr, flush=True)
            for what, run in runs.items():
                times[what].append(run())
        print("\r\x1b[K", end="", file=sys.stderr)
    report(times, options)


def report(times: dict[str, list[float]], options: argparse.Namespace) -> None:
    base = times["C loop"]
    rows = {}
    for what, own in times.items():
        ratios = [mine / theirs for mine, theirs in zip(own, base, strict=True)]
        rows[what] = {
            "ns_median": round(statistics.median(own)),
            "ns_range": [round(min(own)), round(max(own))],
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    machine = (
        f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    )
    print(f"one RDMSR, {options.pairs} pairs of {options.count:,} accesses; {machine}")
    print(f"{'':24}{'ns, median (range)':>28}{'ratio to C (range)':>28}")
    for what, row in rows.items():
        ns = f"{row['ns_median']:,} ({row['ns_range'][0]:,}-{row['ns_range'][1]:,})"
        ratio = (
            f"{row['ratio_median']:.2f} ({row['ratio_range'][0]:.2f}-{row['ratio_range'][1]:.2f})"
        )
        print(f"{what:24}{ns:>28}{ratio:>28}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine, "count": options.count, "pairs": options.pairs, "rows": rows}
    options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
