"""What ``kvmsr exec`` costs where nothing is asked of it."""

import json
import subprocess
import sys

import pytest

from kvmsr import native
from tests.conftest import ROOT, need

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


def test_an_exit_that_is_no_msr_access_costs_few_instructions(tmp_path):
    need("valgrind")
    need("cc")
    counts = tmp_path / "counts.json"
    words = [sys.executable, ROOT / "bench/instructions.py", "--json", counts]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(counts.read_text())
    assert 0 < report["added"] <= report["at_most"] == 50
