"""A guest that says on its serial line, again and again, what an MSR reads as: a letter."""

import time

from tests.command import words_of
from tests.counting import status

MSR = 0x1B0

# This is real-mode code.
LETTERS = bytes.fromhex(
    "66b9b0010000"  # again: mov ecx, 0x1b0
    "0f32"  # rdmsr
    "baf803"  # mov dx, 0x3f8
    "ee"  # out dx, al
    "66b900000200"  # mov ecx, 0x20000
    "67e2fd"  # wait: loop wait
    "ebe9"  # jmp again
)
SAYS_A = f"""\
# What the guest is to say.
[[rule]]
msr = {MSR:#x}
read = {{ value = {ord("a"):#x} }}
write = "ignore"
"""


def run_words(folder, backend, *options, image=LETTERS, policy=SAYS_A):
    """Write guest and policy into *folder*; return the command that runs it."""
    (folder / "letters.bin").write_bytes(image)
    (folder / "letters.toml").write_text(policy)
    return words_of(
        "run", folder / "letters.bin", "--mode", "16", "--memory", "2M", "--backend", backend,
        "--policy", folder / "letters.toml", "--serial", folder / "serial", *options,
    )  # fmt: skip


def wait_until(holds, seconds=90):
    """Wait until a function returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("this does not become true")


def wait_for_accesses(pid, least=10):
    return wait_until(lambda: (found := status(pid)) and found["accesses"] >= least)


def says(folder, letter):
    """Wait until the guest says *letter*, and nothing else any more."""
    serial = folder / "serial"
    at = serial.stat().st_size
    wait_until(lambda: serial.read_bytes()[at:][-3:] == letter.encode() * 3)
