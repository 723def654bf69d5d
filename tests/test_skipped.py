"""A run says what it went without."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ONE_THAT_NEEDS_THE_KERNEL = (
    "tests/e2e/test_real_guests.py::"
    "test_debians_kernel_boots_to_its_end_on_the_soft_backend[acpi=off]"
)


@pytest.mark.parametrize("required", ["0", "1"])
def test_real_guests_that_did_not_run_are_named_in_capitals(required, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", ONE_THAT_NEEDS_THE_KERNEL], cwd=ROOT, check=False,
        env=os.environ | {"KVMSR_PEERS": str(tmp_path), "KVMSR_REQUIRE_PEERS": required},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == int(required), done.stdout + done.stderr
    *_, count, capitals, _ = done.stdout.splitlines()
    assert count == "1 skipped for want of kernel"
    assert capitals.startswith("NOT ALL OF IT RAN: KERNEL MISSING, 1 TEST SKIPPED.")
