"""A command imports what it needs when it runs. What that takes in time, bench/startup.py shows."""

import subprocess
import sys

import pytest

HEAVY = {
    "kvmsr.attach", "kvmsr.backend", "kvmsr.dispatch", "kvmsr.kvm", "kvmsr.machine",
    "kvmsr.native", "kvmsr.policy", "kvmsr.session", "kvmsr.trace",
    "capstone", "cffi", "elftools", "importlib.resources", "lazy_loader", "logging", "lz4",
    "rich", "textual", "unicorn", "zstandard",
}  # fmt: skip
CATALOG = {"kvmsr.msr", "msgspec"}


def imported(words):
    """Return what a command imports."""
    script = f"""
import sys
from kvmsr.cli import main
try:
    main({words!r})
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["completion", "bash"]])
def test_help_needs_no_command_and_no_catalog(words):
    assert not imported(words) & (HEAVY | CATALOG)


@pytest.mark.parametrize(
    "words",
    [
        ["msr", "0x1a0"],
        ["msr", "0x1a0", "--json"],
        ["msr", "--search", "thermal"],
        ["decode", "0x1a0", "0x850089"],
        ["decode", "0x1a0", "0x850089", "--json"],
        ["encode", "IA32_MTRR_DEF_TYPE", "type=WB"],
    ],
    ids=" ".join,
)
def test_a_look_up_needs_the_catalog_only(words):
    found = imported(words)
    assert found >= CATALOG
    assert not found & HEAVY


@pytest.mark.parametrize(
    "words", [["ctl", "--help"], ["ctl", "1", "policy", "--help"], ["top", "--help"]]
)
def test_help_of_ctl_and_top_needs_no_session(words):
    assert not imported(words) & HEAVY


@pytest.mark.parametrize("words", [["trace", "--help"], ["trace", "show", "--help"]])
def test_help_of_trace_reads_no_trace(words):
    assert not imported(words) & (HEAVY | {"nanoarrow", "numpy"})
