# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: guests, the C programs that run them, and how results are shown."""

import argparse
import json
import platform
import shutil
import statistics
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import kvmsr

BENCH = Path(__file__).parent
PEERS = BENCH.parent / ".peers"
GUESTS = Path(kvmsr.__file__).parent / "machine/guests"
COUNT_AT = 4

# Writes to a port that no device has, as many times as the number at COUNT_AT. To be loaded and
# started at 0x7c00, as the image of guests/loop.S.
PORTS = bytes.fromhex(
    "eb069090"  # jmp begin
    "00000000"  # the count
    "fa"  # begin: cli
    "2e668b1e047c"  # mov ebx, cs:[count]
    "baf002"  # mov dx, 0x2f0
    "ee"  # again: out dx, al
    "664b"  # dec ebx
    "75fb"  # jnz again
    "baf400"  # mov dx, 0xf4
    "ee"  # out dx, al
    "f4"  # hlt
)


def tool(name: str) -> str:
    """Return the path of a tool, or end by its name."""
    found = shutil.which(name)
    if found is None:
        sys.exit(f"bench: needs {name}")
    return found


def build_minimal(folder: Path) -> Path:
    """Return the program of minimal.c."""
    program = folder / "minimal"
    subprocess.run([tool("cc"), "-O2", "-Wall", "-o", program, BENCH / "minimal.c"], check=True)
    return program


def image_with(folder: Path, name: str, image: bytes, *numbers: int) -> Path:
    """Write an image with its count, and what else is to be filled in after it."""
    data = bytearray(image)
    struct.pack_into(f"<{len(numbers)}I", data, COUNT_AT, *numbers)
    (folder / name).write_bytes(data)
    return folder / name


def loop_image(folder: Path, count: int) -> Path:
    return image_with(folder, "loop.bin", (GUESTS / "loop.bin").read_bytes(), count)


def ports_image(folder: Path, count: int) -> Path:
    return image_with(folder, "ports.bin", PORTS, count)


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all in turns, every other round backwards, and return what each measured."""
    for run in runs.values():
        run()  # warm up
    times: dict[str, list[float]] = {what: [] for what in runs}
    for number in range(rounds):
        print(f"\r{number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        for what, run in list(runs.items())[:: -1 if number % 2 else 1]:
            times[what].append(run())
    print("\r\x1b[K", end="", file=sys.stderr)
    return times


def ratios(own: Sequence[float], base: Sequence[float]) -> dict[str, object]:
    """Compare two columns of measurements, pair by pair."""
    found = [mine / theirs for mine, theirs in zip(own, base, strict=True)]
    return {
        "ratio_median": round(statistics.median(found), 3),
        "ratio_range": [round(min(found), 3), round(max(found), 3)],
        "ratio_of_fastest": round(min(own) / min(base), 3),
    }


def this_machine() -> str:
    return f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"


def save(options: argparse.Namespace, **results: object) -> None:
    """Write the results as JSON, with the machine and the options that made them."""
    options.json.parent.mkdir(parents=True, exist_ok=True)
    given = {key: value for key, value in vars(options).items() if key != "json"}
    options.json.write_text(
        json.dumps({"machine": this_machine(), **given, **results}, indent=2) + "\n"
    )
