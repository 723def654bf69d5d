#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Measure what `kvmsr exec` costs: MSR accesses of a QEMU guest that a constant or a Python handler
answers, compared with MSR 0x35 in QEMU itself; exits that are not MSR accesses, with and without
kvmsr; and the start of a VMM. All run in turns, and the result is the ratios, round by round, with
medians and ranges: absolute times mean little on a shared machine.

The guest measures by its TSC, so QEMU's own start does not count, and it measures a hundred exits
at a time. What counts of a run is the lower quartile of these, because on a busy machine most of
them are interrupted by something else.

    bench/attach.py [--count ACCESSES] [--rounds ROUNDS] [--json FILE]

Needs a C compiler, the binutils, and QEMU: the system's, or that of tools/fetch_peers.py.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import common
from common import BENCH, PEERS, tool

from kvmsr import backend
from kvmsr.kvm import Kvm

MSR_READS, PORT_WRITES = 0, 1
AT_A_TIME = 100  # exits; a guest has room for up to 511 of these
VALUE = 0x1234
ENDED = 1  # QEMU's status after a guest's 0
POLICIES = {
    "constant": f"[[rule]]\nmsr = 0x35\nread = {{ value = {VALUE} }}\n",
    "handler": '[[rule]]\nmsr = 0x35\nread = { python = "answering:answer" }\n',
}
HANDLER = f"def answer(access):\n    return {VALUE}\n"
# By what is measured: what it is divided by, and what it may be at most.
COMPARED = {
    "QEMU's own handler": (None, None),
    "constant": ("QEMU's own handler", 1.05),
    "Python handler": ("constant", 2.0),
    "port, QEMU alone": (None, None),
    "port, kvmsr exec": ("port, QEMU alone", 1.01),
}
START_AT_MOST = 0.25  # seconds


def find_qemu() -> list[str]:
    """Return the command that starts QEMU."""
    system = shutil.which("qemu-system-x86_64")
    if system:
        return [system]
    found = sorted(PEERS.glob("qemu/usr/bin/qemu-system-x86_64"))
    if not found:
        sys.exit("bench: needs QEMU: install it, or run tools/fetch_peers.py .peers")
    root = found[-1].parents[2]
    libraries = sorted({str(path.parent) for path in root.glob("**/*.so.*")})
    data = [option for part in ("qemu", "seabios") for option in ("-L", root / "usr/share" / part)]
    return ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(found[-1]), *map(str, data)]


def build_bios(folder: Path) -> bytes:
    made = folder / "exits"
    subprocess.run([tool("as"), "--32", "-o", f"{made}.o", BENCH / "exits.S"], check=True)
    flat = ["-m", "elf_i386", "--oformat", "binary", "-Ttext", "0", "-e", "_start"]
    subprocess.run([tool("ld"), *flat, "-o", made, f"{made}.o"], check=True)
    return made.read_bytes()


def tsc_khz() -> int:
    with Kvm(backend.open("kvm")) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return vcpu.get_tsc_khz()


class Bench:
    """Runs guests; everything it returns is in nanoseconds, or seconds of a start."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.qemu = find_qemu()
        self.bios = build_bios(folder)
        self.khz = tsc_khz()
        self.minimal = [common.build_minimal(folder), common.ports_image(folder, 1), "1"]
        (folder / "answering.py").write_text(HANDLER)
        for name, policy in POLICIES.items():
            (folder / f"{name}.toml").write_text(policy)

    def under(self, policy: str | None) -> list[str]:
        """Return the words before a VMM's command; none without a policy."""
        if policy is None:
            return []
        return [
            sys.executable, "-m", "kvmsr", "exec", "--policy", str(self.folder / f"{policy}.toml"),
            "--json", "--summary", str(self.folder / "summary.json"), "--",
        ]  # fmt: skip

    def exit(self, what: int, policy: str | None, vcpus: int) -> float:
        """Return what an exit took, all vCPUs taken together."""
        numbers = AT_A_TIME, vcpus, what, self.count // AT_A_TIME
        bios = common.image_with(self.folder, "bios.bin", self.bios, *numbers)
        out = self.folder / "out"
        done = subprocess.run(
            [
                *self.under(policy), *self.qemu, "-accel", "kvm", "-smp", str(vcpus), "-m", "16",
                "-nodefaults", "-no-user-config", "-display", "none", "-bios", bios,
                "-debugcon", f"file:{out}", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
            ],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == ENDED, done.stderr
        sent = [number for (number,) in struct.iter_unpack("<Q", out.read_bytes())]
        each = len(sent) // vcpus
        values, ticks = sent[::each], [n for at, n in enumerate(sent) if at % each]
        assert len(values) == vcpus
        if policy is not None and what == MSR_READS:
            report = json.loads((self.folder / "summary.json").read_text())
            assert report["totals"]["reads"] == self.count * vcpus
            assert values == [VALUE] * vcpus
        return statistics.quantiles(ticks, n=4)[0] / AT_A_TIME / self.khz * 1e6

    def start(self, policy: str | None) -> float:
        """Return how long it took until a small VMM had its first exit."""
        begun = time.monotonic()
        done = subprocess.run(
            [*self.under(policy), *self.minimal], capture_output=True, text=True, check=True
        )
        words = (done.stdout or done.stderr).split()
        return float(words[1]) / 1e9 - begun


def exits(bench: Bench, vcpus: int, rounds: int) -> dict[str, dict[str, object]]:
    times = common.in_turns(
        {
            "QEMU's own handler": partial(bench.exit, MSR_READS, None, vcpus),
            "constant": partial(bench.exit, MSR_READS, "constant", vcpus),
            "Python handler": partial(bench.exit, MSR_READS, "handler", vcpus),
            "port, QEMU alone": partial(bench.exit, PORT_WRITES, None, vcpus),
            "port, kvmsr exec": partial(bench.exit, PORT_WRITES, "constant", vcpus),
        },
        rounds,
    )
    rows = {}
    for what, own in times.items():
        base, most = COMPARED[what]
        rows[what] = {
            "ns_median": round(statistics.median(own)),
            "ns_range": [round(min(own)), round(max(own))],
        }
        if base is not None:
            rows[what] |= {
                "compared_with": base,
                "at_most": most,
                **common.ratios(own, times[base]),
            }
    return rows


def starts(bench: Bench, rounds: int) -> dict[str, dict[str, object]]:
    times = common.in_turns(
        {str(policy): partial(bench.start, policy) for policy in (None, *POLICIES)}, rounds
    )
    rows = {}
    for policy in POLICIES:
        added = [own - alone for own, alone in zip(times[policy], times["None"], strict=True)]
        rows[policy] = {
            "added_s_median": round(statistics.median(added), 3),
            "added_s_range": [round(min(added), 3), round(max(added), 3)],
            "at_most": START_AT_MOST,
        }
    return rows


def show_exits(vcpus: int, rows: dict[str, dict[str, object]]) -> None:
    title = "one vCPU" if vcpus == 1 else f"{vcpus} vCPUs"
    print(f"\n{title:22}{'ns, median (range)':>28}   ratio (range)")
    for what, row in rows.items():
        low, high = row["ns_range"]
        ns = f"{row['ns_median']:,} ({low:,}-{high:,})"
        line = f"{what:22}{ns:>28}"
        if "compared_with" in row:
            low, high = row["ratio_range"]
            line += (
                f"   {row['ratio_median']:.2f} ({low:.2f}-{high:.2f}) to {row['compared_with']};"
                f" of the fastest: {row['ratio_of_fastest']:.2f}; at most {row['at_most']}"
            )
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, default=BENCH / "results/attach.json")
    options = parser.parse_args()
    options.count = min(max(options.count // AT_A_TIME, 2), 511) * AT_A_TIME
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.count)
        found = {vcpus: exits(bench, vcpus, options.rounds) for vcpus in (1, 2)}
        started = starts(bench, options.rounds)
    load.append(os.getloadavg())
    print(f"{options.rounds} rounds of {options.count:,} exits; {common.this_machine()}")
    print("load averages before and after:", *(f"{one:.1f} {five:.1f}" for one, five, _ in load))
    for vcpus, rows in found.items():
        show_exits(vcpus, rows)
    print()
    for policy, row in started.items():
        low, high = row["added_s_range"]
        print(
            f"start with a {policy}: {row['added_s_median']:.3f} s more ({low:.3f}-{high:.3f});"
            f" at most {row['at_most']}"
        )
    common.save(options, load=load, exits=found, start=started)


if __name__ == "__main__":
    main()
