"""
Linux's KVM selftests, run with and without ``kvmsr exec``.

Run as a program with the paths of some, as in the nested machine, this prints what came of each as
a line of JSON.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.command import words_of

__all__ = ("SECONDS", "alone", "programs", "under_exec")

SECONDS = 60
"""How long a program may take alone; under kvmsr exec it is three times as much."""
MEMORY = 8 << 30
"""Bytes of address space that a program may have."""


def programs(folder):
    """Return the programs in *folder*, which ``make -C tools/testing/selftests/kvm`` has left."""
    found = [path for where in (folder, folder / "x86_64") for path in where.glob("*")]
    return sorted(path for path in found if path.is_file() and is_program(path))


def is_program(path):
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF" and os.access(path, os.X_OK) and path.suffix == ""


def run(words, seconds):
    """
    Return a program's exit status, or None if it did not end, and where it found fault.

    What it leaves out because of a module parameter counts, too.
    """
    process = subprocess.Popen(
        list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a group of its own
            process.communicate()
    status = process.returncode  # of kvmsr exec, 128 + N if signal N ended the program
    return status if status >= 0 else 128 - status, re.findall(
        r"^(?: +\S+\.[ch]:\d+: |To run .* set the module parameter ).*", output, re.MULTILINE
    )


def limited(program):
    limit = shutil.which("prlimit")  # which the nested machine lacks; it is a limit itself
    return [limit, f"--as={MEMORY}", program] if limit else [program]


def alone(program, seconds=SECONDS):
    """Return what comes of *program*."""
    return run(limited(program), seconds)


def under_exec(program, *options, seconds=3 * SECONDS):
    """Return what comes of *program* under ``kvmsr exec`` with an empty policy."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "policy.toml").touch()
        files = ["--policy", f"{folder}/policy.toml", "--summary", f"{folder}/summary"]
        came = run(words_of("exec", *files, *options, "--", *limited(program)), seconds)
        # kvmsr's own status 4, for what the host lacks, is also that of a test that skips itself.
        assert came[0] is None or Path(folder, "summary").stat().st_size, came
        return came


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        bare = alone(path)
        print(json.dumps([path.name, bare, bare[0] is not None and under_exec(path)]), flush=True)
