"""
Linux's own KVM selftests end the same way with ``kvmsr exec`` as without.

KVM_SELFTESTS names the folder with the programs, as ``make -C tools/testing/selftests/kvm`` leaves
them in a kernel's source.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from kvmsr import native
from tests.command import words_of
from tests.conftest import need

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

SECONDS = 60
MEMORY = 8 << 30


def programs():
    folder = Path(os.environ.get("KVM_SELFTESTS", "/no"))
    found = [path for where in (folder, folder / "x86_64") for path in where.glob("*")]
    return sorted(
        path for path in found if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"
        and os.access(path, os.X_OK)
    )  # fmt: skip


def run(words):
    """Return a program's exit status, or None if it did not end, and where it found fault."""
    process = subprocess.Popen(
        list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None, []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a group of its own
            process.communicate()
    return process.returncode, re.findall(r"^ +(\S+\.[ch]:\d+: .*)", output, re.MULTILINE)


@pytest.mark.parametrize("program", programs() or [None], ids=lambda path: path and path.name)
def test_the_same_end(tmp_path, program):
    if program is None:
        pytest.skip("needs KVM_SELFTESTS, the folder with Linux's KVM selftests")
    words = [need("prlimit"), f"--as={MEMORY}", program]
    expected = run(words)
    if expected[0] is None:
        pytest.skip(f"needs a KVM on which {program.name} ends within {SECONDS} s")
    (tmp_path / "policy.toml").touch()
    files = ["--policy", tmp_path / "policy.toml", "--summary", tmp_path / "summary"]
    assert run(words_of("exec", *files, "--", *words)) == expected
