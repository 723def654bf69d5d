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
import statistics
import subprocess
import tempfile
from pathlib import Path

from common import BENCH, build_minimal, in_turns, loop_image, ratios, save, this_machine

from kvmsr import Boot, Machine, Policy, Rule, backend

MSR = 0x35


def in_c(program: Path, image: Path, count: int) -> float:
    done = subprocess.run([program, image, str(count)], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


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
        program, image = build_minimal(folder), loop_image(folder, options.count)
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
        times = in_turns(runs, options.pairs)
    report(times, options)


def report(times: dict[str, list[float]], options: argparse.Namespace) -> None:
    base = times["C loop"]
    rows = {}
    for what, own in times.items():
        rows[what] = {
            "ns_median": round(statistics.median(own)),
            "ns_range": [round(min(own)), round(max(own))],
            **ratios(own, base),
        }
    print(f"one RDMSR, {options.pairs} pairs of {options.count:,} accesses; {this_machine()}")
    print(f"{'':24}{'ns, median (range)':>28}{'ratio to C (range)':>28}")
    for what, row in rows.items():
        ns = f"{row['ns_median']:,} ({row['ns_range'][0]:,}-{row['ns_range'][1]:,})"
        ratio = (
            f"{row['ratio_median']:.2f} ({row['ratio_range'][0]:.2f}-{row['ratio_range'][1]:.2f})"
        )
        print(f"{what:24}{ns:>28}{ratio:>28}")
    save(options, rows=rows)


if __name__ == "__main__":
    main()
