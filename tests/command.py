"""The command ``kvmsr``, started as its users start it."""

import json
import subprocess
import sys

KVMSR = [sys.executable, "-m", "kvmsr"]


def words_of(*words):
    """Return the command with these words as a list of strings."""
    return [*KVMSR, *map(str, words)]


def call(*words, timeout=120, **options):
    """Run a command; return the process that has ended, with its output as text."""
    options = {"stdin": subprocess.DEVNULL, "check": False} | options
    return subprocess.run(
        words_of(*words), capture_output=True, text=True, timeout=timeout, **options
    )


def kvmsr(*words, status=0, **options):
    """Run a command that ends with *status*; return its output and its errors."""
    done = call(*words, **options)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout, done.stderr


def run_guest(folder, *words, backend="kvm", timeout=300, **options):
    """Run a guest with ``kvmsr run``; return the summary and what the guest sent."""
    log = folder / "serial"
    files = ["--serial", log, "--log", folder / "accesses"]
    done = call("run", "--backend", backend, *words, "--json", *files, timeout=timeout, **options)
    assert done.stderr == ""
    return json.loads(done.stdout), log.read_text(errors="replace").replace("\r", "")
