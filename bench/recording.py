#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Measure what recording costs: an MSR access that C answers with a constant, without a trace and with
one of each grade, in turns; what RIP and callers add to grade "all"; and how many events per second
reach the file, if rings are always full.
The result is the ratios, pair by pair, with medians and ranges: absolute times mean little on a
shared machine.

    bench/recording.py [--count ACCESSES] [--pairs PAIRS] [--json FILE]
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import BENCH, in_turns, loop_image, ratios, save, this_machine

from kvmsr import Boot, Machine, Policy, Rule
from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.native.events import Rings
from kvmsr.native.table import Names
from kvmsr.trace import Grade, TraceOptions
from kvmsr.trace.file import Head, TraceWriter

MSR = 0x35
AT_MOST = {"count": 1.0, "all": 1.05}
EVENTS_AT_LEAST = 1_000_000
VCPUS = 2
CALLERS = (1, 4, 8)


# A 64-bit guest that reads the MSR as often as %ebx says, in a function that a function calls that
# another one calls; each has pushed a register.
CALLS = bytes.fromhex(
    "bb00000000"  # mov $COUNT, %ebx
    "e80b000000"  # 1: call outer
    "ffcb"  # dec %ebx
    "75f7"  # jnz 1b
    "30c0"  # xor %al, %al
    "66baf400"  # mov $0xf4, %dx
    "ee"  # out %al, %dx
    "53e8020000005bc3"  # outer: push %rbx; call middle; pop %rbx; ret
    "53e8020000005bc3"  # middle: push %rbx; call leaf; pop %rbx; ret
    "b9350000000f32c3"  # leaf: mov $0x35, %ecx; rdmsr; ret
)


def calls_image(folder: Path, count: int) -> Path:
    path = folder / "calls.bin"
    path.write_bytes(CALLS[:1] + count.to_bytes(4, "little") + CALLS[5:])
    return path


def access(
    folder: Path, image: Path, count: int, mode: int, grade: Grade | None, **options: int
) -> float:
    trace = None if grade is None else TraceOptions(folder / "trace", grade, **options)
    policy = Policy([Rule(MSR, read=0x20004)])
    with Machine("kvm", memory="16M", policy=policy, trace=trace) as machine:
        machine.load(Boot(image, mode=mode))
        result = machine.run()
    assert result.summary.totals()["reads"] == count
    return result.wall_s / count * 1e9


def events_per_second(folder: Path, least: int) -> float:
    """Take events from rings that are always full, and write them, as a recording does."""
    names = Names(["kernel", "policy.toml:2"])
    with Block(VCPUS) as block, TraceWriter(folder / "trace", Head()) as writer:
        vm = block.take_vm()
        vcpus = [block.new_cpu(vm, number).shared for number in range(VCPUS)]
        rings = Rings(block, names, None)
        for vcpu in vcpus:
            ring = np.frombuffer(ffi.buffer(vcpu.events), rings.event)
            ring["index"], ring["name"], ring["traced"] = MSR, 1, 1
            ring["time_ns"], ring["value"] = time.monotonic_ns(), np.arange(lib.KVMSR_EVENTS)
        begun = time.perf_counter()
        while writer.rows < least:
            for vcpu in vcpus:
                vcpu.head = vcpu.tail + lib.KVMSR_EVENTS
            rows = np.concatenate(list(rings.take()))
            writer.write(rows[np.argsort(rows["time_ns"], kind="stable")], names.known())
        return writer.rows / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path, default=BENCH / "results/recording.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = loop_image(folder, options.count)
        run = partial(access, folder, image, options.count, 16)
        called = partial(access, folder, calls_image(folder, options.count), options.count, 64)
        grades = (None, Grade.COUNT, Grade.ONCE, Grade.CHANGE, Grade.ALL)
        times = in_turns({str(grade): partial(run, grade) for grade in grades}, options.pairs)
        where = in_turns(
            {
                "all": partial(called, Grade.ALL),
                "rip": partial(called, Grade.ALL, rip=True),
                **{f"callers {n}": partial(called, Grade.ALL, callers=n) for n in CALLERS},
            },
            options.pairs,
        )
        rate = statistics.median(events_per_second(folder, 1_000_000) for _ in range(5))
    rows = {what: ratios(own, times["None"]) for what, own in times.items() if what != "None"}
    print(f"{options.pairs} rounds of {options.count:,} accesses; {this_machine()}")
    for what, row in rows.items():
        low, high = row["ratio_range"]
        most = f"; at most {AT_MOST[what]}" if what in AT_MOST else ""
        print(
            f"grade {what:7}{row['ratio_median']:.2f} ({low:.2f}-{high:.2f}) to no trace; of the"
            f" fastest: {row['ratio_of_fastest']:.2f}{most}"
        )
    more = {what: ratios(own, where["all"]) for what, own in where.items() if what != "all"}
    for what, row in more.items():
        low, high = row["ratio_range"]
        print(f"{what:13}{row['ratio_median']:.2f} ({low:.2f}-{high:.2f}) to grade all without")
    print(f"into the file: {rate:,.0f} events/s; at least {EVENTS_AT_LEAST:,}")
    save(options, grades=rows, where=more, events_per_second=round(rate))


if __name__ == "__main__":
    main()
