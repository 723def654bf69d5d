"""The C that reads what others write, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess

import pytest

from kvmsr import native
from tests.conftest import ROOT, need
from tests.native.test_core import table

pytestmark = pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")

SOURCES = ROOT / "src/kvmsr/native/c"
FILES = (
    "block.c", "evaluate.c", "kvm.c", "life.c", "merge.c", "record.c", "shadow.c", "table.c",
    "upcall.c", "where.c",
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    built = subprocess.run(
        [
            need("cc"), "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all", f"-I{SOURCES}", "-o", folder / "fuzz",
            ROOT / "tests/native/fuzz.c", *(SOURCES / name for name in FILES),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        assert "asan" in built.stderr or "ubsan" in built.stderr, built.stderr
        pytest.skip("needs the sanitizers' libraries")
    (folder / "table").write_bytes(table())
    return [folder / "fuzz", folder / "table"]


def test_mutated_tables_and_blocks(fuzz):
    """A bounded run; KVMSR_FUZZ_ROUNDS makes it longer."""
    rounds = os.environ.get("KVMSR_FUZZ_ROUNDS", "4000")
    done = subprocess.run(
        [*fuzz, rounds, os.environ.get("KVMSR_SEED", "1")],
        capture_output=True, text=True, check=False, timeout=7200,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[2]) > int(rounds) // 20
