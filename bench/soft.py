# SPDX-License-Identifier: Apache-2.0
"""How fast the soft backend is: its CPU, and an MSR access that a policy answers."""

import statistics
import struct
import tempfile
import time
from pathlib import Path

from kvmsr import backend
from kvmsr.machine import Boot, Machine
from kvmsr.policy import Policy, Rule

ROUNDS = 7
LOOPS = 8_000_000
ACCESSES = 100_000

# mov $LOOPS, %ecx; 1: add $1, %eax; add %eax, %ebx; xor %ebx, %eax; dec %ecx; jnz 1b
BODY = b"\x66\x83\xc0\x01" + b"\x66\x01\xc3" + b"\x66\x31\xd8" + b"\x66\x49"
COMPUTE = b"\x66\xb9" + struct.pack("<I", LOOPS) + BODY + b"\x75" + bytes((256 - len(BODY) - 2,))
# mov $ACCESSES, %edi; mov $0x35, %ecx; 1: rdmsr; dec %edi; jnz 1b
READ = b"\x66\xbf" + struct.pack("<I", ACCESSES) + b"\x66\xb9\x35\0\0\0\x0f\x32\x66\x4f\x75\xfa"
LEAVE = b"\xb0\x00\xe6\xf4\xf4"  # debug exit


def seconds(code: bytes, policy: Policy) -> float:
    """Return how long a guest of *code* runs."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "guest.bin")
        image.write_bytes(code + LEAVE)
        with Machine(backend.open("soft"), memory=4 << 20, policy=policy) as machine:
            machine.load(Boot(image, mode=16))
            begun = time.perf_counter()
            result = machine.run(timeout=120)
            assert result.exit_status == 1, result.end
            return time.perf_counter() - begun


def show(what: str, values: list[float], unit: str) -> None:
    """Print a median and its range."""
    print(
        f"{what:42} {statistics.median(values):8.2f} ({min(values):.2f}-{max(values):.2f}) {unit}"
    )


def main() -> None:
    """Measure and print."""
    constant = Policy([Rule(0x35, read=5)])
    handler = Policy([Rule(0x35, read=lambda access: 5)])
    rounds = [
        (seconds(COMPUTE, constant), seconds(READ, constant), seconds(READ, handler))
        for _ in range(ROUNDS)
    ]
    compute, by_value, by_function = zip(*rounds, strict=True)
    show("compute loop", [5 * LOOPS / s / 1e6 for s in compute], "MIPS")
    show("access, a constant of the policy", [s / ACCESSES * 1e6 for s in by_value], "us")
    show("access, a Python handler", [s / ACCESSES * 1e6 for s in by_function], "us")


if __name__ == "__main__":
    main()
