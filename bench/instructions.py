#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Count the user instructions that `kvmsr exec` adds to an exit that is not an MSR access, with
valgrind's callgrind. A small VMM runs a guest that writes to a port, with and without kvmsr; each
write is a KVM_RUN through the C library's ioctl. Unlike times, the counts are exact even on a busy
machine.

    bench/instructions.py [--json FILE]

Needs a C compiler and valgrind.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import common
from common import BENCH, tool

AT_MOST = 50
COUNTS = 1_000, 11_000  # so that all that is not an exit cancels out
POLICY = "[[rule]]\nmsr = 0x35\nread = { value = 1 }\n"


def instructions(folder: Path, program: Path, count: int, before: list[str]) -> int:
    """Return the instructions that the VMM executes for a guest with *count* exits."""
    callgrind = [tool("valgrind"), "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
    vmm = [str(program), str(common.ports_image(folder, count)), str(count)]
    done = subprocess.run(
        [*before, *callgrind, *vmm], capture_output=True, text=True, check=False, timeout=300
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"bench: valgrind cannot run the VMM: {done.stderr.strip()}")
    return int(found[1])


def per_exit(folder: Path, program: Path, before: list[str]) -> float:
    few, many = (instructions(folder, program, count, before) for count in COUNTS)
    return (many - few) / (COUNTS[1] - COUNTS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, default=BENCH / "results/instructions.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "policy.toml").write_text(POLICY)
        policy, summary = folder / "policy.toml", folder / "summary.json"
        words = ["exec", "--policy", policy, "--json", "--summary", summary, "--"]
        under = [sys.executable, "-m", "kvmsr", *map(str, words)]
        program = common.build_minimal(folder)
        rows = {"alone": per_exit(folder, program, []), "exec": per_exit(folder, program, under)}
        assert json.loads(summary.read_text())["vms"]  # it was under the policy
    added = rows["exec"] - rows["alone"]
    print(
        f"user instructions of a VMM at an exit: {rows['alone']:.1f} alone,"
        f" {rows['exec']:.1f} under kvmsr exec: {added:.1f} more; at most {AT_MOST}"
    )
    common.save(options, rows=rows, added=added, at_most=AT_MOST)


if __name__ == "__main__":
    main()
